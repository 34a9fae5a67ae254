import time

import pytest

from router_runtime.errors import EncoderError

hub = pytest.importorskip("router_runtime.weights.hub", exc_type=ImportError)
constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_local_folder_is_taken_as_it_is(tmp_path):
    assert hub.model_folder(str(tmp_path)) == tmp_path


def test_without_a_network_the_answer_comes_at_once_and_says_what_to_do():
    start = time.perf_counter()
    with pytest.raises(
        EncoderError, match=r"'org/name' at revision 'v1' are not .* HF_HUB_OFFLINE"
    ):
        hub.model_folder("org/name", revision="v1")
    assert time.perf_counter() - start < 2


def test_an_earlier_download_is_used_without_a_network(tmp_path):
    commit = "0" * 40
    repository = tmp_path / "cache" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert hub.model_folder("org/name") == snapshot


@pytest.mark.parametrize("path", ["/no/such/folder", "./none", "~/none"])
def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub(path):
    with pytest.raises(EncoderError, match="does not exist"):
        hub.model_folder(path)


def test_a_name_that_cannot_be_a_hub_id_is_refused():
    with pytest.raises(EncoderError, match="neither a local folder nor known"):
        hub.model_folder("a/b/c d")
