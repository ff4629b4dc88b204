"""The oracles are jsonschema, a second validator, and the files as they stand in the repository."""

import json
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from paramscope.cli.config import config as config_command
from paramscope.config.kinds import Checkpoint
from paramscope.config.load import load, merge, read, validate, validate_mixed
from paramscope.config.model import Config
from paramscope.config.render import default_yaml, schema_json
from paramscope.errors import ConfigError, ParamscopeError, RequestError

ROOT = Path(__file__).parents[2]
RUNS = sorted((ROOT / "workflow" / "configs").glob("*.yaml"))
DEFAULT = Config().model_dump(mode="json")
SCHEMA = json.loads(schema_json())
SECOND = jsonschema.Draft202012Validator(SCHEMA)
OPT = DEFAULT["models"]["tiny-opt"]


def at(key, value):
    """The configuration that says `value` at a dotted key and nothing else."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def refusal(raw):
    with pytest.raises(ConfigError) as caught:
        validate(raw)
    message = str(caught.value)
    assert message.startswith("config: ")
    assert len(message.splitlines()) <= 2
    assert "pydantic" not in message
    return message


def mappings(tree, prefix=""):
    """Every mapping of the default by its dotted key, but for those whose keys are free."""
    if prefix not in ("models.", "dpsgd.known."):
        yield prefix, tree
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from mappings(value, f"{prefix}{key}.")


@pytest.mark.parametrize(
    ("path", "text"),
    [("config.yaml", default_yaml), ("workflow/schemas/config.schema.json", schema_json)],
)
def test_generated_files_have_not_drifted(path, text):
    assert (ROOT / path).read_text(encoding="utf-8") == text(), "run `paramscope config --write`"


def test_default_yaml_is_the_default():
    assert validate(yaml.safe_load(default_yaml())) == Config()
    assert max(map(len, default_yaml().splitlines())) <= 100


def test_plain_values_of_a_configuration_describe_it():
    assert validate(json.loads(json.dumps(DEFAULT))) == Config() == validate({})


def test_the_commented_checkpoint_is_one():
    lines = default_yaml().splitlines()
    start = lines.index("  # opt-125m:")
    example = "\n".join(line.replace("  # ", "  ", 1) for line in lines[start : start + 3])
    models = validate({"model": "opt-125m", "models": yaml.safe_load(example)}).models
    assert models == {"opt-125m": Checkpoint(kind="checkpoint", source="facebook/opt-125m")}


def test_every_key_is_described():
    for name, part in [("Config", SCHEMA), *SCHEMA["$defs"].items()]:
        assert part.get("description"), name
        for key, schema in part["properties"].items():
            assert "$ref" in schema or schema.get("description"), f"{name}.{key}"


def test_the_schema_is_one_and_takes_the_default():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    SECOND.validate(yaml.safe_load(default_yaml()))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_run_is_valid(path):
    SECOND.validate(merge(DEFAULT, read(path)))
    assert load([path]) == load([ROOT / "config.yaml", path]) != Config()


def test_runs_are_there():
    assert {path.stem for path in RUNS} >= {"micro", "planted", "wikitext-local"}


def test_merging_is_snakemakes():
    from snakemake.utils import update_config

    for path in RUNS:
        theirs = json.loads(json.dumps(DEFAULT))
        update_config(theirs, read(path))
        assert merge(DEFAULT, read(path)) == theirs


def test_a_whole_number_will_do_for_a_number():
    assert validate(at("prm.sigmas", [1, 2])).prm.sigmas == (1.0, 2.0)


WRONG = [
    # where, what, the wrong key and value as the message names them, what would do
    ("prm.sigmas", [], "prm.sigmas is []", "a number above 0, such as [0.5, 1.0, 2.0, 4.0]"),
    ("prm.sigmas", [0.0, 1.0], "prm.sigmas[0] is 0.0", "a number above 0"),
    ("prm.sigmas", [1.0, 0.5], "prm.sigmas is [1.0, 0.5]", "write [0.5, 1.0]"),
    ("prm.sigmas", [1.0, 1.0], "prm.sigmas is [1.0, 1.0]", "write [1.0]"),
    ("prm.sigmas", 1.0, "prm.sigmas is 1.0", "a list of at least one"),
    ("prm.seeds", 1, "prm.seeds is 1", "a whole number of at least 2, such as 10"),
    ("prm.min_k", 101, "prm.min_k is 101", "at least 1 and at most 100, such as 20"),
    ("prm.rules", [], "prm.rules is []", "each curvature, origin, origin_quantile, contrast, gate"),
    ("prm.rules", ["origin"] * 2, "prm.rules is ['origin', 'origin']", "name each once"),
    ("prm.rules", ["orign"], "prm.rules[0] is 'orign'", "or kfac (did you mean origin?)"),
    ("partition.rules", ["curvature", "random"], "prm.rules is ['contrast'", "add to partition"),
    ("partition.default", "random", "partition.default is 'random'", "name another rule"),
    (
        "partition.random_draws",
        4,
        "partition.random_draws is 4",
        "at least 5 and at most 32767, such as 20",
    ),
    ("model", "tiny-opr", "model is 'tiny-opr'", "planted, tiny-opt (did you mean tiny-opt?)"),
    ("model", None, "model is empty", "give text, such as tiny-opt"),
    ("seed", "8", "seed is '8'", "at least 0 and below 4294967296, without quotes"),
    ("seed", True, "seed is true", "a whole number of at least 0"),
    ("seed", 8.0, "seed is 8.0", "a whole number of at least 0"),
    ("seed", -1, "seed is -1", "a whole number of at least 0"),
    ("device", "gpu", "device is 'gpu'", "such as auto, cpu, cuda or cuda:1"),
    ("dtype", "float23", "dtype is 'float23'", "bfloat16 (did you mean float32?)"),
    ("base.learning_rate", "1e-3", "base.learning_rate is '1e-3'", "so write 0.001"),
    ("base.learning_rate", 0, "base.learning_rate is 0", "a number above 0, such as 0.002"),
    ("base.learning_rate", float("inf"), "base.learning_rate is inf", "such as 0.002"),
    ("base.learning_rate", True, "base.learning_rate is true", "a number above 0"),
    ("target.target_auc", 0.5, "target.target_auc is 0.5", "above 0.5 and below 1, such as 0.8"),
    ("target.target_auc", 1, "target.target_auc is 1", "above 0.5 and below 1, such as 0.8"),
    ("curvature.method", "xdiagg", "curvature.method is 'xdiagg'", "(did you mean xdiag?)"),
    ("curvature.method", "finite_difference", "dtype is 'float32' and curvature", "give float64"),
    ("curvature", None, "curvature is empty", "keys of method, draws, draws_per_shard, toleranc"),
    (
        "curvature",
        {"method": "xdiag", "probes": 3},
        "curvature.probes is 3 and xdiag",
        "give an even number",
    ),
    (
        "curvature",
        {"method": "hutchinson", "graph": "layerwise"},
        "curvature.graph is 'layerwise' and curvature.method is hutchinson",
        "give whole",
    ),
    ("spotcheck.sequences", 129, "spotcheck.sequences is 129", "give at most 128"),
    ("length", 129, "length is 129", "give at most 128"),
    ("models", {}, "models is {}", "a mapping with at least one name"),
    ("models.x", 3, "models.x is 3", "a mapping with kind: checkpoint, planted or scratch"),
    ("models.x", {}, "models.x.kind is missing", "give checkpoint, planted or scratch"),
    ("models.x.kind", "scrach", "models.x.kind is 'scrach'", "(did you mean scratch?)"),
    ("models.x", {**OPT, "heads": 3}, "models.x.heads is 3", "give a divisor, such as 2"),
    ("models.x", {**OPT, "vocab": 9}, "models.x.vocab is 9", "at least 260, such as 2048"),
    (
        "models.x.kind",
        "planted",
        "models.x.units is missing",
        "at least 144 and at most 27648, such as 900",
    ),
    ("models.a/b", OPT, "models.'a/b' can't be a name", "use letters, digits, '.', '_' and '-'"),
    ("models", {3: OPT}, "models.3 can't be a name", "use letters, digits, '.', '_' and '-'"),
    ("models.x", {"hiden": 1, "kind": "scratch"}, "models.x.hiden is not", "mean models.x.hidden?"),
    ("models.x", {**OPT, "kind": "planted"}, "models.x.hidden is not", "another kind another name"),
    ("corpus.source", "local", "corpus.paths is []", "name at least one text file"),
    ("corpus.paths", ["a.txt"], "corpus.paths is ['a.txt']", "set corpus.source to local"),
    ("corpus.paths", "a.txt", "corpus.paths is 'a.txt'", "a list, each text"),
    ("corpus.gate.permutations", 38, "corpus.gate.permutations is 38", "give at least 39"),
    ("embedding.min_dist", -0.1, "embedding.min_dist is -0.1", "at least 0 and at most 1"),
    ("sigma", 1.0, "sigma is not a known key", "did you mean prm.sigmas?"),
    ("prm.sigma", 1.0, "prm.sigma is not a known key", "did you mean prm.sigmas?"),
    (
        "corpus.member",
        9,
        "corpus.member is not a known key",
        "did you mean corpus.documents.member?",
    ),
    ("planner.margin", 0, "planner is not a known key", "the top level has model, seed"),
    ("compression.density", 0.5, "compression.density is not a known key", "densities?"),
    ("compression.densities", [0], "compression.densities[0] is 0;", "a number above 0"),
    ("compression.densities", [1.5], "compression.densities[0] is 1.5", "at most 1"),
    ("compression.methods", ["best"], "compression.methods[0] is 'best'", "magnitude, wanda"),
    (
        "compression.pattern",
        "2:4",
        "compression.densities is [0.5, 0.3, 0.2, 0.1, 0.05] and 2:4",
        "give [0.5]",
    ),
    (
        "compression.finetune.accumulation",
        32,
        "compression.finetune.accumulation is 32 and batch is 16",
        "give at most that",
    ),
    ("force", 1, "force is 1", "give text"),
    ("memory.device", "laptop", "memory.device is 'laptop'", "or h200 (did you mean laptop-8gb?)"),
    ("memory.devices", ["h100-80"], "memory.devices[0] is 'h100-80'", "(did you mean h100-80gb?)"),
    ("memory.strategies", ["bk"], "memory.strategies[0] is 'bk'", "inference, gradient"),
    ("memory.models", [], "memory.models is []", "a list of at least one, each text"),
    ("memory.shown", ["gpt2"], "memory.shown is ['gpt2'] and models lacks", "add to models"),
    (
        "corpus.dataset",
        "some/text",
        "corpus.dataset is 'some/text' and source is stdlib",
        "source hub takes one",
    ),
]


@pytest.mark.parametrize(("where", "what", "names", "mend"), WRONG)
def test_a_wrong_value_is_named_with_what_would_do(where, what, names, mend):
    message = refusal(at(where, what))
    assert message.startswith(f"config: {names}")
    assert mend in message.splitlines()[0]


def test_a_rule_that_is_not_made_can_not_be_the_default():
    raw = {"partition": {"rules": ["curvature", "random"], "default": "origin"}}
    assert "partition.default is 'origin' and not in partition.rules" in refusal(raw)


def test_a_planted_model_has_units_for_the_neighbors():
    raw = {"model": "planted", "embedding": {"n_neighbors": 450}}
    assert (
        "embedding.n_neighbors is 450 and model planted has 900 units; give at most 449"
        in refusal(raw)
    )


def test_what_is_planned_for_is_what_computes():
    h100, laptop = {"device": "h100-80gb"}, {"device": "laptop-8gb"}
    assert "memory.device is 'h100-80gb' and device is cpu" in refusal(
        {"device": "cpu", "memory": h100}
    )
    assert "memory.device is 'laptop-8gb' and device is cuda:1; plan for local, or a GPU" in (
        refusal({"device": "cuda:1", "memory": laptop})
    )
    assert validate({"memory": h100}).device == validate({"memory": laptop}).device == "auto"


def test_other_errors_are_counted():
    raw = {"seed": -1, "prm": {"seeds": 0, "sigmas": []}}
    assert refusal(raw).endswith("such as 0\n2 more values are wrong")


PLACES = dict(mappings(DEFAULT))


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(PLACES)), st.text(max_size=5), st.integers() | st.text())
def test_an_unknown_key_is_refused_wherever_it_is(prefix, key, value):
    assume(key not in PLACES[prefix])
    place = PLACES[prefix]
    raw = {**place, key: value}
    for part in reversed(prefix.split(".")[:-1]):
        raw = {part: raw}
    names = (f"config: {prefix}{name} is not a" for name in (key, repr(key)))
    assert refusal(raw).startswith(tuple(names))
    assert not SECOND.is_valid(raw)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(PLACES)), st.data())
def test_any_value_is_taken_or_refused_in_words(prefix, data):
    key = data.draw(st.sampled_from(sorted(PLACES[prefix])))
    raw = {**PLACES[prefix], key: data.draw(values)}
    for part in reversed(prefix.split(".")[:-1]):
        raw = {part: raw}
    try:
        validate(raw)
    except ConfigError:
        refusal(raw)
    else:
        assert SECOND.is_valid(raw)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"model: [", "not YAML at line 1, column 9"),
        (b"- a\n", "holds ['a']; write keys"),
        (b"", "holds empty; write keys"),
        (b"model: \xff\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content, says):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.yaml") as caught:
        load([path])
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml can't be read: No such file"):
        load([tmp_path / "nowhere.yaml"])


def run(*arguments):
    app = typer.Typer()
    app.command()(config_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_writes_what_it_checks(tmp_path):
    root = ("--root", tmp_path)
    assert isinstance(run("--check", *root).exception, ParamscopeError)
    assert run("--write", *root).exit_code == 0
    assert run("--check", *root).exit_code == 0
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    error = run("--check", *root).exception
    assert isinstance(error, ParamscopeError)
    assert error.exit_code == 1
    assert "config.yaml differs" in str(error)
    assert "config.schema.json" not in str(error)


def test_the_command_prints_the_default_and_validates_files(tmp_path):
    assert run().output == default_yaml()
    assert run("--validate", *RUNS[:2]).exit_code == 0
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("seed: -1\n", encoding="utf-8")
    assert isinstance(run("--validate", wrong).exception, ConfigError)
    assert isinstance(run(wrong).exception, RequestError)
    assert isinstance(run("--write", "--check").exception, RequestError)


def test_as_many_permutations_as_asked_for_let_the_gate_fire():
    from paramscope.corpus.gate import blind_gate

    members, others = ["a member"] * 10, ["something else, and longer"] * 10
    gate = validate(at("corpus.gate.permutations", 39)).corpus.gate
    verdict = blind_gate(members, others, permutations=gate.permutations, alpha=gate.alpha, seed=0)
    assert not verdict.passed


def test_bounds_and_choices_are_the_stages_own():
    from paramscope.geometry import embedding, partition, planted
    from paramscope.models import tokenizer

    def part(section, key):
        return SCHEMA["$defs"][section]["properties"][key]

    units = part("Planted", "units")
    assert (units["minimum"], units["maximum"]) == (planted.LEAST, planted.TENSORS * planted.WIDTH)
    assert part("Partition", "random_draws")["minimum"] == partition.FEWEST_DRAWS
    assert set(part("Partition", "rules")["items"]["enum"]) == {*partition.RULES, "random"}
    assert tuple(part("Embedding", "clustering")["enum"]) == embedding.CLUSTERINGS
    assert part("Scratch", "vocab")["minimum"] == 256 + len(tokenizer.SPECIAL)


def test_numbers_that_came_as_text_from_the_command_line_are_numbers():
    raw = merge(DEFAULT, {"prm": {"seeds": "12", "sigmas": ["0.5", "1"]}, "model": "tiny-opt"})
    with pytest.raises(ConfigError, match="without quotes"):
        validate(raw)
    config = validate_mixed(raw)
    assert (config.prm.seeds, config.prm.sigmas) == (12, (0.5, 1.0))
    with pytest.raises(ConfigError, match=r"prm\.seeds is 'twelve'"):
        validate_mixed(merge(raw, {"prm": {"seeds": "twelve"}}))
