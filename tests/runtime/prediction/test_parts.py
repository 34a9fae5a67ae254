from __future__ import annotations

import pytest

from router_runtime.config import EncoderRuntime
from router_runtime.errors import ArtifactError, ConfigError
from router_runtime.prediction.parts import (
    PREDICTORS,
    load_parts,
    predictor_facts,
    refuse_exported,
    refuse_server,
)


@pytest.mark.parametrize("kind", ["pickle", None, 3, ["features"]])
def test_an_unknown_kind_is_named_with_the_known_ones(kind):
    with pytest.raises(ArtifactError, match="known: adapter, features, prompted, sequence"):
        load_parts({"kind": kind}, {})
    with pytest.raises(ArtifactError, match="Unknown kind of predictor"):
        predictor_facts({"kind": kind})


@pytest.mark.parametrize("kind", sorted(PREDICTORS))
def test_a_malformed_description_is_an_artifact_error(kind):
    with pytest.raises(ArtifactError, match="predictor"):
        load_parts({"kind": kind, "surprise": 1}, {})
    with pytest.raises(ArtifactError, match="predictor"):
        predictor_facts({"kind": kind, "surprise": 1})


@pytest.mark.parametrize("given", [{"url": "http://127.0.0.1:1"}, {"api_key_env": "KEY"}])
def test_a_server_that_nothing_would_call_is_refused(given):
    refuse_server(EncoderRuntime(), holds="nothing")
    with pytest.raises(ConfigError, match="the artifact has no server"):
        refuse_server(EncoderRuntime(**given), holds="no server")


def test_exported_files_that_no_encoder_would_come_from_are_refused(tmp_path):
    exported = EncoderRuntime(engine="onnx", folder=tmp_path)
    refuse_exported(EncoderRuntime(), kinds=["embedded"])
    refuse_exported(exported, kinds=["embedded", "clip"])
    with pytest.raises(ConfigError, match="no encoder that can be exported"):
        refuse_exported(exported, kinds=["embedded"])
