"""Computes what a conversion lost: the difference between a JSON value and its converted form. Pure.

A message is stored in OpenAI's chat shape. Converted back to its original dialect, it may differ from what was sent
(ids, signatures, order). `difference` encodes only what differs, and `restored` applies it:
`restored(base, difference(base, value)) == value` for all JSON values.

Format of a difference (JSON): `{"=": value}` replaces; `{"~": {key: difference}, "-": [key]}` changes an object;
`{"[]": [...]}` builds a list from the base's elements in any order. Each entry is an index, `[index, difference]`, or
`{"=": element}`.
"""

from typing import Any

JSON = dict[str, Any]

# Deeper values are stored whole: this recursion is limited by the stack.
_DEPTH_MAX = 24
# Longer lists are compared position by position: searching for each element is quadratic.
_PAIRS_MAX = 4096


def difference(base: Any, value: Any, depth: int = 0) -> JSON | None:
    """How `value` differs from `base`; None if they are equal."""
    if _same(base, value):
        return None
    if depth < _DEPTH_MAX:
        if isinstance(base, dict) and isinstance(value, dict):
            return _object_difference(base, value, depth + 1)
        if isinstance(base, list) and isinstance(value, list) and base:
            return {"[]": _elements(base, value, depth + 1)}
    return {"=": value}


def restored(base: Any, patch: Any) -> Any:
    """Applies a difference to its base. A damaged difference changes nothing."""
    try:
        return _restored(base, patch)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return base


def _restored(base: Any, patch: Any) -> Any:
    if patch is None:
        return base
    if "=" in patch:
        return patch["="]
    if "[]" in patch:
        return [_element(base, ref) for ref in patch["[]"]]
    gone = frozenset(patch.get("-", ()))
    changed = patch.get("~", {})
    kept = {key: _restored(each, changed.get(key)) for key, each in base.items() if key not in gone}
    return kept | {key: _restored(None, each) for key, each in changed.items() if key not in base}


def _element(base: list[Any], ref: Any) -> Any:
    if isinstance(ref, int):
        return base[ref]
    if isinstance(ref, list):
        return _restored(base[ref[0]], ref[1])
    return ref["="]


def _object_difference(base: JSON, value: JSON, depth: int) -> JSON:
    patch: JSON = {}
    changed = {
        key: difference(base[key], each, depth) if key in base else {"=": each}
        for key, each in value.items()
        if key not in base or not _same(base[key], each)
    }
    gone = [key for key in base if key not in value]
    if changed:
        patch["~"] = changed
    if gone:
        patch["-"] = gone
    return patch


def _elements(base: list[Any], value: list[Any], depth: int) -> list[Any]:
    """A list's elements expressed by the base's: first equal ones, then ones of the same type."""
    if len(base) * len(value) > _PAIRS_MAX:
        return [_in_place(base, index, each, depth) for index, each in enumerate(value)]
    unused = dict(enumerate(base))
    refs: list[Any] = [None] * len(value)
    for fits in (_same, _is_alike):
        for position, each in enumerate(value):
            if refs[position] is not None:
                continue
            index = next((index for index, other in unused.items() if fits(other, each)), None)
            if index is not None:
                patch = difference(unused.pop(index), each, depth)
                refs[position] = index if patch is None else [index, patch]
    return [{"=": each} if ref is None else ref for ref, each in zip(refs, value, strict=True)]


def _in_place(base: list[Any], index: int, value: Any, depth: int) -> Any:
    if index >= len(base):
        return {"=": value}
    patch = difference(base[index], value, depth)
    return index if patch is None else [index, patch]


def _is_alike(base: Any, value: Any) -> bool:
    if not (isinstance(base, dict) and isinstance(value, dict)):
        return False
    return "type" not in base or "type" not in value or bool(base["type"] == value["type"])


def _same(base: Any, value: Any) -> bool:
    """Equality of JSON values: Python's `==` treats `1`, `1.0` and `True` as equal."""
    if base is value:
        return True
    try:
        return bool(base == value) and _kinds(base) == _kinds(value)
    except RecursionError:
        return False


def _kinds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _kinds(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_kinds(each) for each in value]
    return type(value)
