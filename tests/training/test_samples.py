from __future__ import annotations

import base64
import io
import math
import tarfile
from decimal import Decimal

import PIL.Image
import pytest

from router_runtime.errors import DataError, QueryError
from router_runtime.messages import TextRule
from router_training.pictures import Pictures
from router_training.samples import Tokens, read_record


def png(colour="red"):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (2, 2), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def as_base64(colour="red"):
    return base64.b64encode(png(colour)).decode()


def colours(query):
    return [PIL.Image.open(io.BytesIO(image.data)).getpixel((0, 0)) for image in query.images]


RED, BLUE, LIME = (255, 0, 0), (0, 0, 255), (0, 255, 0)


@pytest.fixture
def read(tmp_path):
    def read(row, rule=TextRule()):
        return read_record(row, number=7, pictures=Pictures(tmp_path), rule=rule)

    return read


def record(**fields):
    return {"idx": 0, "prompt": "Hi", "model_scores": {"a": 1, "b": 0}} | fields


def test_a_record_as_the_data_stage_writes_it(read):
    row = {
        "idx": 0,
        "prompt": "What is shown in this image?",
        "answer": "A cat",
        "images": [as_base64()],
        "model_scores": {"large": 1, "small": 0},
    }
    found = read(row)
    assert found.sample.id == "0"
    assert found.sample.query.text == "What is shown in this image?"
    assert colours(found.sample.query) == [RED]
    assert found.sample.reference == "A cat"
    assert found.scores == {"large": 1.0, "small": 0.0}


@pytest.mark.parametrize(
    ("score", "expected"), [(1, 1.0), (True, 1.0), (False, 0.0), (0.25, 0.25), ("0.5", 0.5)]
)
def test_scores_are_numbers_from_0_to_1(read, score, expected):
    assert read(record(model_scores={"a": score})).scores == {"a": expected}


@pytest.mark.parametrize("score", [None, math.nan])
def test_a_missing_score_is_nan_and_never_0(read, score):
    assert math.isnan(read(record(model_scores={"a": score, "b": 1})).scores["a"])


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model_scores": {"a": 1.5}}, "model_scores.a"),
        ({"model_scores": {"a": -0.1}}, "model_scores.a"),
        ({"model_scores": {"a": "good"}}, "model_scores.a"),
        ({"model_scores": {"a": [1]}}, "model_scores.a"),
        ({"model_scores": {"a": math.inf}}, "model_scores.a"),
        ({"model_scores": {"a": 10**400}}, "model_scores.a"),
        ({"model_scores": [1, 0]}, "model_scores"),
        ({"model_costs": {"a": -0.01}}, "model_costs.a"),
        ({"model_costs": {"a": math.nan}}, "model_costs.a"),
        ({"model_costs": {"a": 1e308}}, "model_costs.a"),
        ({"model_costs": {"a": 1e-320}}, "model_costs.a"),
        ({"model_costs": 3}, "model_costs"),
        ({"model_usage": {"a": 12}}, "model_usage.a"),
        ({"model_usage": {"a": {"output_tokens": -1}}}, "model_usage.a"),
        ({"model_usage": {"a": {"input_tokens": 1, "cached_tokens": 2}}}, "model_usage.a"),
        ({"model_usage": {"a": {"prompt_tokens_details": 2}}}, "model_usage.a"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "  "}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"idx": 1.5}, "idx"),
        ({"idx": True}, "idx"),
        ({"group": [1]}, "group"),
        ({"group": ""}, "group"),
        ({"contaminated": "false"}, "contaminated"),
        ({"images": ["no-such.png"]}, "images[0]"),
        ({"images": [as_base64(), as_base64()[:60]]}, "images[1]"),
        ({"images": [{"bytes": None, "path": None}]}, "images[0]"),
        ({"images": [5]}, "images[0]"),
        ({"image": "../../etc/passwd"}, "image[0]"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": "[{"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages"),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_field(read, fields, field):
    with pytest.raises(DataError) as caught:
        read(record(**fields))
    assert caught.value.field == field


def test_an_error_quotes_the_value_and_not_a_whole_prompt(read):
    with pytest.raises(DataError) as caught:
        read(record(model_scores={"a": "private " * 1000}))
    assert len(str(caught.value)) < 200


def test_decimals_are_numbers(read):
    found = read(record(model_scores={"a": Decimal("0.5")}, model_costs={"a": Decimal("0.001")}))
    assert (found.scores, found.costs) == ({"a": 0.5}, {"a": 0.001})


def test_an_empty_list_of_images_does_not_hide_the_image(read):
    assert colours(read(record(images=[], image=as_base64())).sample.query) == [RED]


def test_an_unknown_shape_names_the_keys_found_and_the_shapes_known(read):
    with pytest.raises(DataError, match=r"'question', 'verdict'.*'model_scores'.*'conversations'"):
        read({"question": "Hi", "verdict": 1})


def test_costs_and_usage_are_read_under_both_names(read):
    found = read(
        record(
            model_costs={"a": 0.002, "b": None},
            model_usage={
                "a": {"input_tokens": 10, "output_tokens": 5, "cached_input_tokens": 4},
                "b": {"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}},
                "c": {"input_tokens": 7, "completion_tokens": None},
            },
        )
    )
    assert found.costs == {"a": 0.002}
    assert found.tokens["a"] == Tokens(10, 5, 4)
    assert (found.tokens["b"].input, found.tokens["b"].cached) == (7, 3)
    assert math.isnan(found.tokens["c"].output)
    assert math.isnan(found.tokens["c"].cached)


def test_pictures_come_as_base64_data_uri_bytes_struct_or_path(read, tmp_path):
    (tmp_path / "a.png").write_bytes(png("lime"))
    sources = [
        as_base64("red"),
        "data:image/png;base64," + as_base64("blue"),
        png("lime"),
        {"bytes": png("red"), "path": None},
        {"bytes": None, "path": "a.png"},
        "a.png",
    ]
    assert colours(read(record(images=sources)).sample.query) == [RED, BLUE, LIME, RED, LIME, LIME]


def test_equal_pictures_share_one_object(read):
    images = read(record(images=[as_base64(), png()])).sample.query.images
    assert images[0] is images[1]


def test_the_default_group_is_prompt_and_pictures(read):
    group = read(record()).sample.group
    assert group == read(record(idx=9, answer="x")).sample.group
    assert group != read(record(prompt="Ho")).sample.group
    assert group != read(record(images=[as_base64()])).sample.group
    assert read(record(group="g")).sample.group == "g"


def test_rows_with_image_sha_are_grouped_by_picture(read, tmp_path):
    (tmp_path / "abc.png").write_bytes(png())
    row = {"id": "x", "image_sha": "abc", "scores": {"a": 1}}
    first, second = (read(row | {"prompt": prompt}).sample for prompt in ("One?", "Two?"))
    assert first.group == second.group
    assert first.query != second.query


def test_a_row_without_id_is_called_by_its_number(read):
    assert read({"prompt": "Hi", "scores": {"a": 1}}).sample.id == "row-7"


def test_answers_that_are_no_text_are_kept_as_json(read):
    assert read(record(answer=4)).sample.reference == "4"
    assert read(record(answer=["a", "b"])).sample.reference == '["a", "b"]'


class TestMessages:
    def test_a_conversation_is_routed_on_by_the_serving_rule(self, read):
        turns = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three"},
        ]
        found = read(record(messages=turns), rule=TextRule(context_chars=3, system_chars=2))
        assert found.sample.query.text == "Be\n\ntwo\n\nthree"
        assert found.sample.messages == tuple(turns)

    def test_the_answer_at_the_end_is_the_reference_and_never_routed_on(self, read):
        turns = [
            {"role": "user", "content": "capital of France?"},
            {"role": "assistant", "content": "Paris"},
        ]
        sample = read(record(messages=turns)).sample
        assert sample.query.text == "capital of France?"
        assert sample.reference == "Paris"
        assert len(sample.messages) == 1

    def test_placeholders_pair_with_the_images_column(self, read):
        turns = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": as_base64("lime")}},
                    {"type": "image", "text": None},
                ],
            },
        ]
        sample = read(record(messages=turns, images=[png("red"), png("blue")])).sample
        assert colours(sample.query) == [RED, LIME, BLUE]
        assert sample.messages[1]["content"] == [{"type": "image"}, {"type": "image"}]

    def test_a_column_without_placeholders_joins_the_last_turn(self, read):
        turns = [{"role": "user", "content": "look"}]
        sample = read(record(messages=turns, images=[png()])).sample
        assert sample.messages == (
            {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image"}]},
        )


class TestConversations:
    def row(self, **fields):
        return {
            "id": "x_1",
            "image": "a.png",
            "conversations": [{"from": "human", "value": "<image>\nClick March 29"}],
            "label": 0,
            "adapter": "calendar",
        } | fields

    @pytest.fixture(autouse=True)
    def picture(self, tmp_path):
        (tmp_path / "a.png").write_bytes(png("red"))
        (tmp_path / "b.png").write_bytes(png("blue"))

    def test_the_adapter_is_the_class(self, read):
        found = read(self.row())
        assert (found.label, found.scores) == ("calendar", None)
        assert found.sample.query.text == "Click March 29"
        assert colours(found.sample.query) == [RED]

    def test_the_position_is_the_class_where_no_name_is_given(self, read):
        assert read(self.row(adapter=None, label=2)).label == 2

    def test_the_last_gpt_turn_names_the_class_and_is_never_routed_on(self, read):
        turns = [
            {"from": "system", "value": "You are a routing classifier"},
            {"from": "human", "value": "<image>\nWhich adapter?"},
            {"from": "gpt", "value": "provider-select\n"},
        ]
        row = self.row(conversations=turns)
        del row["label"], row["adapter"]
        found = read(row)
        assert found.label == "provider-select"
        assert found.sample.query.text == "You are a routing classifier\n\nWhich adapter?"

    def test_an_expert_s_answer_beside_an_adapter_is_the_reference(self, read):
        turns = [*self.row()["conversations"], {"from": "gpt", "value": "click(3, 4)"}]
        sample = read(self.row(conversations=turns)).sample
        assert sample.reference == "click(3, 4)"
        assert "click" not in sample.query.text

    def test_several_pictures_pair_with_their_places(self, read):
        turns = [{"from": "human", "value": "<image>before <image> after"}]
        sample = read(self.row(conversations=turns, image=["a.png", "b.png"])).sample
        assert colours(sample.query) == [RED, BLUE]
        assert "<image>" not in sample.query.text

    @pytest.mark.parametrize(
        "fields",
        [
            {"conversations": []},
            {"conversations": "Hi"},
            {"conversations": [{"from": "robot", "value": "x"}]},
            {"conversations": [{"from": "human"}]},
            {"adapter": 3},
            {"adapter": None, "label": "zero"},
            {"adapter": None, "label": None},
            {"image": ["a.png", "b.png"]},
        ],
    )
    def test_other_shapes_are_errors(self, read, fields):
        with pytest.raises(DataError):
            read(self.row(**fields))


def test_a_query_with_its_category(read):
    found = read({"query": "What is 2+2?", "category": "math"})
    assert (found.sample.query.text, found.label) == ("What is 2+2?", "math")


class TestTarFiles:
    def tar(self, path, members):
        with tarfile.open(path, "w") as file:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))

    def test_members_are_found_by_name_and_files_beside_go_first(self, tmp_path):
        self.tar(tmp_path / "x.tar", [("a.png", png("red")), ("b.png", png("blue"))])
        (tmp_path / "b.png").write_bytes(png("lime"))
        pictures = Pictures(tmp_path)
        assert pictures.load("a.png").data == png("red")
        assert pictures.load("b.png").data == png("lime")

    def test_a_damaged_tar_does_not_matter_to_pictures_that_are_files(self, tmp_path):
        (tmp_path / "backup.tar").write_bytes(b"no tar" * 100)
        (tmp_path / "a.png").write_bytes(png("red"))
        assert Pictures(tmp_path).load("a.png").data == png("red")
        with pytest.raises(DataError, match=r"backup\.tar"):
            Pictures(tmp_path).load("b.png")

    def test_a_name_in_two_tars_is_refused(self, tmp_path):
        for name, colour in (("x.tar", "red"), ("y.tar", "blue")):
            self.tar(tmp_path / name, [("a.png", png(colour))])
        with pytest.raises(QueryError, match=r"x\.tar and y\.tar"):
            Pictures(tmp_path).load("a.png")

    def test_links_and_outside_names_lead_nowhere(self, tmp_path):
        with tarfile.open(tmp_path / "x.tar", "w") as file:
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            file.addfile(link)
        with pytest.raises(QueryError, match="no picture file"):
            Pictures(tmp_path).load("link.png")

    def test_a_damaged_tar_is_named(self, tmp_path):
        (tmp_path / "x.tar").write_bytes(b"not a tar file")
        with pytest.raises(DataError, match=r"x\.tar"):
            Pictures(tmp_path).load("a.png")
