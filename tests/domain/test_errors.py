import re

from cotenant.domain import errors
from cotenant.domain.errors import CotenantError


def drawn() -> dict[str, str]:
    """Return each exception of the tree in the module's docstring, with the one that it is drawn under."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"([│├└─ ]*)([A-Z]\w+)(?: |$)", line)
        if found:
            depth = len(found[1]) // 4
            above[depth:] = [found[2]]
            if depth:
                parents[found[2]] = above[depth - 1]
    return parents


def test_the_tree_at_the_top_of_the_file_is_the_tree_of_its_classes() -> None:
    classes = [each for each in vars(errors).values() if isinstance(each, type)]
    tree = {
        each.__name__: each.__mro__[1].__name__
        for each in classes
        if issubclass(each, CotenantError) and each is not CotenantError
    }
    assert drawn() == tree
