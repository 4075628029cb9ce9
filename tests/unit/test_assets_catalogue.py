"""models.toml: every shape against the parameter counts that are known from elsewhere."""

from __future__ import annotations

import pytest

from harness.catalogue.models import ModelShape, load_models
from harness.errors import HarnessError


def parameters(shape: ModelShape) -> tuple[int, int, int, int]:
    """Return parameters of one block's linears, one block's norms, the embedding, and the whole model."""
    query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    linears = shape.hidden_size * (2 * query + 2 * key + 3 * shape.intermediate_size)
    norms = 2 * shape.hidden_size
    embedding = shape.vocab_size * shape.hidden_size
    heads = 1 if shape.tied_head else 2
    return linears, norms, embedding, shape.num_layers * (linears + norms) + heads * embedding + shape.hidden_size


# Source: counts of the papers' models computed by hand from their published sizes; smollm2-135m counted in the GGUF.
KNOWN = {
    "smollm2-135m": (3_538_944, 1_152, 28_311_552, 134_515_008),
    "tinyllama-1.1b": (44_040_192, 4_096, 65_536_000, 1_100_048_384),
    "llama2-7b": (202_375_168, 8_192, 131_072_000, 6_738_415_616),
    "mistral-7b": (218_103_808, 8_192, 131_072_000, 7_241_732_096),
    "llama3-8b": (218_103_808, 8_192, 525_336_576, 8_030_261_248),
    "llama2-13b": (317_194_240, 10_240, 163_840_000, 13_015_864_320),
    "llama2-70b": (855_638_016, 16_384, 262_144_000, 68_976_648_192),
}


SHAPES_ALONE = {"shape-tiny", "llama-60m", "llama-130m", "llama-350m", "llama-1b"}
# Source: GaLore's table 6, weights of full-rank training in G (bf16).
WEIGHTS_GB = {"llama-60m": 0.12, "llama-130m": 0.25, "llama-350m": 0.68, "llama-1b": 2.60}


@pytest.mark.parametrize("name", sorted(WEIGHTS_GB))
def test_galores_shapes_weigh_what_its_table_says(name: str) -> None:
    spec = load_models()[name]
    assert spec.shape is not None
    assert 2 * parameters(spec.shape)[-1] / 1e9 == pytest.approx(WEIGHTS_GB[name], rel=0.09)
    with pytest.raises(HarnessError, match="is a shape without weights"):
        spec.with_weights("pretrained")
    assert spec.with_weights("random").identity()["source"] == "random"


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_the_shape_has_the_known_number_of_parameters(name: str) -> None:
    shape = load_models()[name].shape
    assert shape is not None
    assert parameters(shape) == KNOWN[name]


def test_both_classes_of_the_packaged_model_have_one_shape() -> None:
    models = load_models()
    assert models["smollm2-135m"].shape == models["smollm2-135m-mistral"].shape
    assert models["smollm2-135m"].packaged == models["smollm2-135m-mistral"].packaged


def test_every_hub_id_says_where_it_was_read_and_no_revision_is_made_up() -> None:
    for spec in load_models().values():
        assert spec.packaged or (spec.hub_id and spec.hub_id_source) or spec.name in SHAPES_ALONE, spec.name
        assert spec.revision is None
        assert spec.licence and spec.summary and spec.shape is not None
        assert spec.shape.hidden_size == spec.shape.num_heads * spec.shape.head_dim
