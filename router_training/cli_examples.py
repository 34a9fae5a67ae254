"""What ends the ``--help`` of every command of ``router-train``: examples, and its JSON's keys."""

from __future__ import annotations

from typing import Final

from router_runtime.cli_examples import Examples, Results

EXAMPLES: Final[Examples] = {
    "run": (
        ("router-train run configs/quickstart.yml", "From records to an artifact."),
        (
            "router-train run configs/router.yml --data records.jsonl \\\n"
            "    --output router_artifacts/mine",
            "The same recipe with other records and another folder.",
        ),
    ),
    "embed": (
        (
            "router-train embed configs/clip.yml --data records.jsonl",
            "Only the features, which 'run' finds in the work folder.",
        ),
        (
            "router-train embed configs/clip.yml --engine ray --ray-address auto",
            "On the machines of a running Ray cluster.",
        ),
    ),
    "fit": (("router-train fit configs/quickstart.yml", "All up to the head."),),
    "calibrate": (
        ("router-train calibrate configs/quickstart.yml", "Which map each model got."),
        ("router-train calibrate configs/quickstart.yml --json", "With all losses."),
    ),
    "tune": (
        (
            "router-train tune configs/quickstart.yml --max-cost-per-1k 2.50",
            "The best quality for 2.50 USD per 1,000 calls.",
        ),
        (
            "router-train tune configs/quickstart.yml --target-quality 0.98",
            "98 % of the best single model's quality, at least cost.",
        ),
    ),
    "evaluate": (
        (
            "router-train evaluate router_artifacts/quickstart --data records.jsonl",
            "Quality and cost on records, with the policy that serves.",
        ),
        (
            "router-train evaluate --config configs/tiers-service.yml \\\n"
            "    --data records.jsonl --html report.html",
            "With the prices of a config, and a page.",
        ),
    ),
    "compare": (
        (
            "router-train compare router_artifacts/old router_artifacts/new \\\n"
            "    --data records.jsonl",
            "Side by side, with intervals against the first.",
        ),
    ),
    "report": (
        (
            "router-train report router_artifacts/base --html report.html",
            "The held-out figures that an artifact carries, as a page.",
        ),
        (
            "router-train report configs/quickstart.yml --plots plots",
            "Of the run that a config describes, with the figures as PNG.",
        ),
    ),
    "add-model": (
        (
            "router-train add-model router_artifacts/quickstart --data new.jsonl \\\n"
            "    --model new-model",
            "Writes router_artifacts/quickstart+new-model; nothing is trained again.",
        ),
    ),
    "leave-out": (
        (
            "router-train leave-out configs/routerbench.yml --data records.jsonl",
            "How the router does on a kind of task that it never saw.",
        ),
    ),
    "collect": (
        (
            "router-train collect configs/label.yml --dry-run",
            "Calls, tokens and dollars; nobody is asked.",
        ),
        (
            "router-train collect configs/label.yml --max-cost-usd 5",
            "Ask until five dollars are spent; answers are kept.",
        ),
    ),
    "judge": (
        (
            "router-train judge configs/label.yml",
            "Judge the answers that are kept, and write records.",
        ),
        (
            "router-train judge configs/label.yml --partial --output part.jsonl",
            "Records of what is there so far.",
        ),
    ),
    "label": (
        (
            "router-train label configs/label.yml --limit 50",
            "A small first run: collect and judge 50 samples.",
        ),
        (
            "router-train label configs/label.yml --max-cost-usd 5 --json",
            "The rest; exit status 1 where something is still missing.",
        ),
    ),
    "audit": (
        (
            "router-train audit configs/label.yml --output audit --rows 200",
            "A page and a CSV in which a person marks answers.",
        ),
    ),
    "trust": (
        (
            "router-train trust configs/label.yml --human audit/audit.csv",
            "How far judges agree with a person.",
        ),
    ),
    "fit-sequence": (
        (
            "router-train fit-sequence --train_data train.jsonl \\\n"
            "    --val_data val.jsonl --output_dir router_model",
            "A text classifier of categories.",
        ),
    ),
    "fit-adapter": (
        (
            "router-train fit-adapter --model_name_or_path Qwen/Qwen3-VL-8B-Instruct \\\n"
            "    --data_path datasets/routing_20251124_150334 \\\n"
            "    --output_dir router_artifacts/adapter",
            "A LoRA adapter on the experts' own base that names the expert.",
        ),
    ),
    "make-tiers": (
        (
            "router-train make-tiers configs/tiers-tables.yml --data tables \\\n"
            "    --output records.jsonl.gz",
            "Tables of many models as records of the tiers weak and strong.",
        ),
    ),
    "route-sequence": (
        (
            'router-train route-sequence --mode single --query "What is 2+2?"',
            "The category of one text, with router_model.",
        ),
        (
            "router-train route-sequence --mode batch --input_file queries.jsonl \\\n"
            "    --output_file categories.jsonl",
            "Of every text of a file; goes on where it was stopped.",
        ),
        (
            "router-train route-sequence --mode evaluate --test_file test.jsonl --json",
            "Accuracy, macro-F1 and the confusion matrix.",
        ),
    ),
    "make-prompted": (
        (
            "router-train make-prompted configs/prompted.yml",
            "A router that asks a model; nothing is trained.",
        ),
    ),
    "generate-routing-data": (
        (
            "router-train generate-routing-data \\\n"
            "    --calendar-dataset calendar/train.jsonl \\\n"
            "    --claim-window-dataset claim-window/train.jsonl \\\n"
            "    --train-samples 100 --eval-samples 100",
            "Two adapters' data sets as one of routing, in parts that share no picture.",
        ),
    ),
    "check-routing-data": (
        (
            "router-train check-routing-data datasets/routing_20251124_150334",
            "What the parts hold; exit status 1 where they share something.",
        ),
    ),
    "convert-routing-to-classification": (
        (
            "router-train convert-routing-to-classification \\\n"
            "    datasets/routing_20251124_150334",
            "Conversations that 'fit-adapter' reads.",
        ),
    ),
    "draw-screens": (
        (
            "router-train draw-screens runs/screens/drawn --rows 1200",
            "Simulated screenshots of three adapters.",
        ),
    ),
    "import": (
        (
            "router-train import routerbench.parquet --output records.jsonl.gz",
            "A published table as evaluation records.",
        ),
    ),
    "simulate": (
        (
            "router-train simulate runs/quickstart/data",
            "The records that configs/quickstart.yml trains on.",
        ),
        (
            "router-train simulate runs/label-demo/data --rows 300 --unlabelled",
            "Samples without scores, for 'router-train label'.",
        ),
    ),
}

_REPORT: Final = (
    "schema_version policy cost_unit n_queries n_scores recorded_cost_share best_single strategies "
    "models pooled reasons quality_gap cost_ratio curves summary honest slices reliability"
)
_LABELLED: Final = (
    "samples candidates judges judged stopped spent_usd total_usd estimated_usd missing output "
    "records trust"
)

RESULTS: Final[Results] = {
    "evaluate": _REPORT,
    "report": _REPORT,
    "collect": _LABELLED,
    "judge": _LABELLED,
    "label": _LABELLED,
    "run": "artifact_id output page skipped tuned report",
    "embed": "rows features structure",
    "fit": "head features models",
    "calibrate": "models",
    "tune": "goal best_single utility cheapest_qualified recommended met message",
    "compare": (
        "schema_version n_queries cost_unit cost_range best_single best_single_quality "
        "best_single_cost standings machine"
    ),
    "add-model": "artifact_id output model_id labels uncertainty held_out notes skipped",
    "leave-out": "left_out",
    "audit": "answers html csv",
    "trust": (
        "schema_version answered scored decided no_verdict judges between_judges "
        "candidates human marks"
    ),
    "fit-sequence": "output best_epoch epochs",
    "fit-adapter": "output best_epoch epochs",
    "make-tiers": "output records model_ids tables",
    "route-sequence": "output rows resumed",
    "make-prompted": "artifact_id output model_ids",
    "generate-routing-data": "output skipped unused rows pictures leaks contradictions",
    "check-routing-data": "rows pictures leaks contradictions",
    "convert-routing-to-classification": "rows",
    "draw-screens": "drawn",
    "import": "output records model_ids skipped",
    "simulate": "output rows answers",
}
"""Of every command with ``--json``."""
