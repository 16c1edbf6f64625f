import pytest

from quire.pipelines.architectures.parts import KVLayerSpec
from quire.pipelines.kv_cache.page_group import PageGroup, first_page, most_pages, pages_ahead
from quire.pipelines.kv_cache.params import KVCacheParams, LayerGroup


@pytest.mark.parametrize(("num_pages", "window"), [(0, None), (3, 0)])
def test_an_impossible_group_is_refused(num_pages: int, window: int | None) -> None:
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        PageGroup(num_pages, window)


@pytest.mark.parametrize(
    ("window", "position", "page"),
    [(None, 1000, 0), (8, 0, 0), (8, 10, 0), (8, 11, 1), (1, 7, 1), (1, 8, 2), (2, 8, 1)],
)
def test_the_first_page_holds_the_oldest_token_of_the_window(
    window: int | None, position: int, page: int
) -> None:
    assert first_page(window, position, page_size=4) == page


@pytest.mark.parametrize(
    ("window", "position", "num_tokens", "pages"),
    [
        (None, 0, 1000, 250),
        # The first window and a chunk of 8 come at once, later as the context moves on.
        (9, 0, 1000, 4),
        (9, 8, 1000, 4),
        (9, 12, 1000, 5),
        (9, 12, 17, 5),
        (9, 0, 3, 1),
    ],
)
def test_pages_come_as_far_as_the_next_step(
    window: int | None, position: int, num_tokens: int, pages: int
) -> None:
    assert pages_ahead(window, position, num_tokens, page_size=4, max_chunk=8) == pages


def test_a_window_bounds_what_a_context_needs() -> None:
    assert most_pages(None, 1000, page_size=4, max_chunk=8) == 250
    assert most_pages(9, 1000, page_size=4, max_chunk=8) == 5
    assert most_pages(9, 10, page_size=4, max_chunk=8) == 3


def test_layers_with_one_window_are_one_group_and_full_ones_come_first() -> None:
    def layer(window: int | None, heads: int = 2) -> KVLayerSpec:
        return KVLayerSpec(num_heads=heads, key_dim=8, value_dim=8, window=window)

    layers = (layer(64), layer(None), layer(64, heads=4), layer(16))
    params = KVCacheParams(dtype="float32", layers=layers, page_size=16)

    assert params.groups == (
        LayerGroup(None, (1,)),
        LayerGroup(16, (3,)),
        LayerGroup(64, (0, 2)),
    )
    token = 2 * 16 * 4
    assert params.group_page_bytes == (16 * token, 16 * token, 16 * 3 * token)
    assert params.bytes_per_page == 16 * 5 * token
