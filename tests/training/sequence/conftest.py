"""A DistilBERT of the real class, tiny, with a WordPiece tokenizer trained on the spot."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

WORDS = {
    "math": "sum integral prime fraction triangle equation divide multiply root angle".split(),
    "science": "cell planet molecule gravity enzyme orbit neutron fossil magnet climate".split(),
    "code": "python function compile loop array debug class string pointer thread".split(),
}
FILLER = "please tell me what the about of is a how would you explain this to my now".split()


def text_of(category, rng):
    words = [*rng.choice(FILLER, 4), *rng.choice(WORDS[category], 3)]
    return " ".join(rng.permutation(words))


def category_rows(n, *, seed):
    """Rows of {"query", "category"} that words tell apart."""
    rng = np.random.default_rng(seed)
    cycle = itertools.cycle(WORDS)
    return [{"query": text_of(c, rng), "category": c} for c in itertools.islice(cycle, n)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of a tiny pretrained DistilBERT."""
    return make_base(tmp_path_factory.mktemp("base") / "tiny-distilbert")


def make_base(folder, *, positions=64):
    torch = pytest.importorskip("torch")
    pytest.importorskip("router_runtime.weights.torch_setup")  # torchvision imports after it
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special)
    corpus = [" ".join([*words, *FILLER]) for words in WORDS.values()]
    tokenizer.train_from_iterator(corpus * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in special}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    config = DistilBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        dim=32,
        hidden_dim=64,
        n_layers=2,
        n_heads=2,
        max_position_embeddings=positions,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        DistilBertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """train.jsonl, val.jsonl and test.jsonl of separable rows."""
    folder = tmp_path_factory.mktemp("rows")
    for name, n, seed in (("train", 240, 0), ("val", 60, 1), ("test", 60, 2)):
        write_jsonl(folder / f"{name}.jsonl", category_rows(n, seed=seed))
    return folder


def settings(base, **changes):
    from router_training.predictor_configs import SequenceConfig

    quick = {"base": str(base), "epochs": 8, "batch_size": 4, "learning_rate": 2e-3}
    quick |= {"patience": 5, "max_tokens": 32}
    return SequenceConfig.model_validate(quick | changes)


@pytest.fixture(scope="session")
def router_model(base, files, tmp_path_factory):
    """A category router trained for real: (folder, learned)."""
    from router_runtime.config import EncoderRuntime
    from router_runtime.router_inference import CategoryConfig
    from router_training.sequence.categories import fit_categories, read_rows

    rows = read_rows(files / "train.jsonl", files / "val.jsonl", categories=None, seed=0)
    folder = tmp_path_factory.mktemp("trained") / "router_model"
    _, learned = fit_categories(
        rows,
        folder,
        settings(base),
        mapped=CategoryConfig(categories=rows.train.model_ids),
        seed=0,
        runtime=EncoderRuntime(device="cpu"),
        progress=lambda done, total: None,
    )
    return folder, learned


@pytest.fixture(scope="session")
def settings_of():
    """A function of (base, changes) to a quick ``SequenceConfig``."""
    return settings


@pytest.fixture(scope="session")
def base_maker():
    """A function that saves a tiny pretrained DistilBERT into a folder."""
    return make_base
