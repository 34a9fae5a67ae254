from dataclasses import replace

import pytest

from router_runtime.errors import ArtifactError, ArtifactIntegrityError, ConfigError
from router_runtime.experts.config import BaseConfig

torch = pytest.importorskip("torch")
base_model = pytest.importorskip("router_runtime.experts.base_model", exc_type=ImportError)
pools = pytest.importorskip("router_runtime.experts.pool", exc_type=ImportError)

TOKENS = torch.tensor([[9, 40, 41, 42, 43]])
Q_PROJ = "model.layers.0.self_attn.q_proj"
NAMES = ("calendar", "claim-window", "provider-select")


@pytest.fixture
def pool_of(llama):
    def make(**settings):
        base = base_model.load_base(BaseConfig(model=str(llama)), own=True)
        return pools.AdapterPool(base, **settings)

    return make


@pytest.fixture
def pool(pool_of, adapters):
    pool = pool_of()
    for name, path in adapters.items():
        pool.add(pool.read(name, path))
    return pool


def scores(pool, *names):
    """The next-token scores of one prompt, a row for each adapter."""
    with torch.inference_mode(), pool.using(names) as model:
        return model(TOKENS.repeat(len(names), 1)).logits


def test_each_adapter_scores_bit_for_bit_as_peft_alone_does(pool, making, llama, adapters):
    for name in NAMES:
        alone = making.peft.PeftModel.from_pretrained(making.load(llama), adapters[name]).eval()
        with torch.inference_mode():
            assert torch.equal(scores(pool, name), alone(TOKENS).logits)


def test_no_adapter_is_the_base_bit_for_bit(pool, making, llama):
    with torch.inference_mode():
        assert torch.equal(scores(pool, None), making.load(llama).eval()(TOKENS).logits)


def test_adapters_differ_and_come_back_bit_for_bit_after_switching(pool, adapters):
    before = {name: scores(pool, name) for name in (*NAMES, None)}
    rows = list(before.values())
    assert not any(torch.equal(a, b) for i, a in enumerate(rows) for b in rows[:i])
    pool.remove("claim-window")
    pool.add(pool.read("again", adapters["claim-window"]))
    for name in ("provider-select", None, "calendar", "provider-select"):
        assert torch.equal(scores(pool, name), before[name])
    assert torch.equal(scores(pool, "again"), before["claim-window"])


def test_rows_of_one_batch_use_their_own_adapters(pool):
    names = ("calendar", None, "provider-select", "calendar", "claim-window")
    mixed = scores(pool, *names)
    for row, name in zip(mixed, names, strict=True):
        same = scores(pool, *[name] * len(names))[0]
        assert torch.equal(row, same)


def test_without_any_adapter_left_the_base_serves_on(pool):
    before = scores(pool, None)
    for name in NAMES:
        pool.remove(name)
    assert torch.equal(scores(pool, None), before)
    assert (pool.cards, pool.n_bytes) == ((), 0)


def test_memory_is_that_of_the_tensors(pool, pool_of):
    held = {id(p): p for n, p in pool.base.model.named_parameters() if ".lora_" in n}
    assert pool.n_bytes == sum(p.numel() * p.element_size() for p in held.values()) > 0
    pool.remove("calendar")
    left = [p for n, p in pool.base.model.named_parameters() if ".lora_" in n]
    assert pool.n_bytes == sum(p.numel() * p.element_size() for p in left)


def test_adapters_take_the_type_of_the_base(llama, adapters):
    base = base_model.load_base(BaseConfig(model=str(llama), dtype="bfloat16"))
    pool = pools.AdapterPool(base)
    card = pool.add(pool.read("calendar", adapters["calendar"]))
    assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16}
    assert card.n_bytes == 2 * pool.read("x", adapters["calendar"]).n_parameters


def test_beyond_the_cap_an_adapter_is_refused_and_the_others_serve_on(pool_of, adapters):
    probe = pool_of()
    size = probe.add(probe.read("x", adapters["calendar"])).n_bytes
    pool = pool_of(max_bytes=2 * size - 1)
    pool.add(pool.read("calendar", adapters["calendar"]))
    before = scores(pool, "calendar")
    with pytest.raises(ConfigError, match=r"'claim-window' needs .* MB beside .* 'max_adapter_mb'"):
        pool.add(pool.read("claim-window", adapters["claim-window"]))
    assert not pool.knows("claim-window")
    assert torch.equal(scores(pool, "calendar"), before)


def in_memory(pool):
    return {card.name for card in pool.cards if card.inner}


def test_eviction_puts_the_least_recently_used_back_and_loads_it_again(pool_of, pool, adapters):
    before = {name: scores(pool, name) for name in NAMES}
    size = pool.n_bytes // 3
    small = pool_of(max_bytes=2 * size, evict=True)
    for name in NAMES[:2]:
        small.add(small.read(name, adapters[name]))
    scores(small, "calendar")
    small.add(small.read(NAMES[2], adapters[NAMES[2]]))
    assert in_memory(small) == {"calendar", "provider-select"}
    assert small.knows("claim-window")
    for name in (*NAMES, *reversed(NAMES)):
        assert torch.equal(scores(small, name), before[name])
        assert small.n_bytes <= 2 * size
    assert small.fits_together(NAMES[:2])
    assert not small.fits_together(NAMES)


def test_an_evicted_adapter_whose_folder_is_gone_is_named_and_others_serve_on(
    pool_of, changed, adapters
):
    folder = changed()
    probe = pool_of()
    size = probe.add(probe.read("x", folder)).n_bytes
    pool = pool_of(max_bytes=size, evict=True)
    pool.add(pool.read("calendar", folder))
    pool.add(pool.read("claim-window", adapters["claim-window"]))
    before = scores(pool, "claim-window")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ArtifactIntegrityError, match="'calendar'"):
        scores(pool, "calendar")
    assert torch.equal(scores(pool, "claim-window"), before)


def test_whatever_is_wrong_is_named_and_the_others_serve_on(
    pool, making, llama, adapters, changed, tmp_path
):
    before = {name: scores(pool, name) for name in (*NAMES, None)}
    other = making.make_llama(tmp_path / "other-base", seed=1)
    wide = making.make_llama(tmp_path / "wide" / "llama", hidden_size=64)
    random = making.random_adapter
    nan = changed()
    tensors = with_nan(nan)
    broken = changed()
    (broken / "adapter_model.safetensors").write_bytes(b"not safetensors")
    pickled = changed()
    (pickled / "adapter_model.bin").write_bytes(b"x")
    cases = [
        ("x", random(other, tmp_path / "a1"), ("other-base", "llama")),
        ("x", random(wide, tmp_path / "a2"), ("64 -> 64", "it is 64 -> 32")),
        ("x", changed(target_modules=["q_proj", "qkv_proj"]), ("'qkv_proj'", "does not have")),
        ("x", broken, ("corrupt",)),
        ("x", pickled, ("adapter_model.bin",)),
        ("x", tmp_path / "absent", ("absent",)),
        ("x", tensors, ("not finite",)),
        ("calendar", adapters["calendar"], ("already", "'calendar'")),
        (str(llama), adapters["calendar"], ("base model's name",)),
    ]
    for name, folder, words in cases:
        with pytest.raises((ArtifactError, ConfigError)) as caught:
            pool.add(pool.read(name, folder))
        for word in words:
            assert word in str(caught.value)
        for kept, expected in before.items():
            assert torch.equal(scores(pool, kept), expected)
    assert [card.name for card in pool.cards] == sorted(NAMES)


def with_nan(folder):
    """The same adapter with one number that is none."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_a_base_known_under_another_name_is_accepted_when_the_config_says_so(llama, changed):
    folder = changed(base_model_name_or_path="elsewhere/models/The-Llama")
    named = base_model.load_base(BaseConfig(model=str(llama), known_as=("org/the-llama",)))
    assert pools.AdapterPool(named).read("calendar", folder)
    plain = base_model.load_base(BaseConfig(model=str(llama)))
    with pytest.raises(ArtifactError, match="known_as"):
        pools.AdapterPool(plain).read("calendar", folder)


def test_a_failure_while_matrices_are_placed_leaves_nothing_behind(pool, adapters):
    before = {name: scores(pool, name) for name in (*NAMES, None)}
    parameters = sum(1 for _ in pool.base.model.parameters())
    folder = pool.read("again", adapters["calendar"])
    half = replace(folder, modules={**folder.modules, "lm_head": folder.modules[Q_PROJ]})
    with pytest.raises(KeyError, match="lm_head"):
        pool.add(half)
    assert sum(1 for _ in pool.base.model.parameters()) == parameters
    assert not pool.knows("again")
    for name, expected in before.items():
        assert torch.equal(scores(pool, name), expected)
    pool.add(pool.read("again", adapters["calendar"]))
    assert torch.equal(scores(pool, "again"), before["calendar"])


def test_an_unknown_adapter_is_named_with_those_there_are(pool):
    with pytest.raises(ConfigError, match=r"no adapter 'nobody' \(known: calendar, claim-window"):
        scores(pool, "nobody")
    with pytest.raises(ConfigError, match="nobody"):
        pool.remove("nobody")


def test_an_adapter_on_the_vision_part_has_its_batches_for_itself(making, qwen, tmp_path):
    pool = pools.AdapterPool(base_model.load_base(BaseConfig(model=str(qwen))))
    for name, modules in {"text": ["q_proj"], "eyes": ["qkv", "q_proj"]}.items():
        folder = making.random_adapter(qwen, tmp_path / name, modules=modules)
        pool.add(pool.read(name, folder))
    assert {card.name: card.alone for card in pool.cards} == {"text": False, "eyes": True}
    assert pool.fits_together(["text", None])
    assert pool.fits_together(["eyes", "eyes"])
    assert not pool.fits_together(["eyes", "text"])
    assert not pool.fits_together(["eyes", None])
