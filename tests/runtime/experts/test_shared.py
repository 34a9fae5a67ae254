"""Weights that are in memory once."""

from __future__ import annotations

import gc
import shutil
import weakref

import pytest

from router_runtime.experts.config import BaseConfig

torch = pytest.importorskip("torch")
base_model = pytest.importorskip("router_runtime.experts.base_model", exc_type=ImportError)
pools = pytest.importorskip("router_runtime.experts.pool", exc_type=ImportError)


def load(folder, **settings):
    return base_model.load_base(BaseConfig(model=str(folder), **settings))


@pytest.fixture
def copied(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copied" / "llama")


def test_the_same_folder_and_type_is_loaded_once(copied, tmp_path):
    first = load(copied)
    (tmp_path / "link").symlink_to(copied)
    for again in (load(copied), load(copied, dtype="float32"), load(tmp_path / "link")):
        assert again.model is first.model
    assert load(copied, dtype="bfloat16").model is not first.model
    assert base_model.load_base(BaseConfig(model=str(copied)), own=True).model is not first.model


def test_a_folder_whose_files_were_replaced_is_loaded_again(copied, making):
    first = load(copied)
    making.make_llama(copied, seed=5)
    assert load(copied).model is not first.model


def test_weights_are_forgotten_with_their_last_user(copied):
    first, second = load(copied), load(copied)
    model = weakref.ref(first.model)
    assert second.model is first.model
    del first
    gc.collect()
    assert model() is not None
    del second
    gc.collect()
    assert model() is None


def test_pools_of_one_base_do_not_see_each_others_adapters(copied, adapters):
    one, other = pools.AdapterPool(load(copied)), pools.AdapterPool(load(copied))
    tokens = torch.tensor([[9, 40, 41]])

    def scores(pool, name):
        with torch.inference_mode(), pool.using([name]) as model:
            return model(tokens).logits

    plain = scores(one, None)
    one.add(one.read("same-name", adapters["calendar"]))
    other.add(other.read("same-name", adapters["claim-window"]))
    assert not torch.equal(scores(one, "same-name"), scores(other, "same-name"))
    kept = scores(other, "same-name")
    assert [card.name for card in one.cards] == ["same-name"]
    one.close()
    assert one.cards == ()
    assert torch.equal(scores(other, "same-name"), kept)
    assert torch.equal(scores(other, None), plain)


def test_adapters_of_a_forgotten_pool_leave_the_memory(copied, adapters):
    kept = pools.AdapterPool(load(copied))
    pool = pools.AdapterPool(load(copied))
    pool.add(pool.read("calendar", adapters["calendar"]))
    held = [name for name, _ in kept.base.model.named_parameters() if ".lora_" in name]
    assert held
    del pool
    gc.collect()
    with kept.using([None]):
        pass
    assert not [name for name, _ in kept.base.model.named_parameters() if ".lora_" in name]
