from collections.abc import Iterable
def captured(draft_tokens: int, most: int = 512, sizes: Iterable[int] = ()) -> int:
    usual = tuple(sizes) or (1, 2, 4, *range(8, 256, 8), *range(256, most + 1, 16))
    rounded = [-(-size // (draft_tokens + 1)) * (draft_tokens + 1) for size in usual]
    return max((size for size in rounded if size <= most), default=0)
