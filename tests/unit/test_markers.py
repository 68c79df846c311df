"""A text is recognised by the id that it carries, and by nothing less."""

import pytest

from shared.markers import carries

LONG = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "marker", "found"),
    [
        ("[Ada #7] Hello", "#7]", True),
        ("[Bo  #7]\r\n hello", "#7]", True),
        ("&lt;p&gt;[Ada &#35;7] Hello", "#7]", True),
        ("[Ada #17] Hello", "#7]", False),
        ("Hello 7", "#7]", False),
        ("Note 47", "Note 4", False),
        ("note 4: hello", "Note 4", True),
        (f"Ada {LONG.upper()} hello", f"#{LONG}]", True),
        (f"Ada {LONG}0 hello", f"#{LONG}]", False),
        ("", "#7]", False),
    ],
    ids=[
        "as written",
        "spaces",
        "entities",
        "other id",
        "short id alone",
        "beginning",
        "case",
        "bare",
        "longer",
        "empty",
    ],
)
def test_a_marker_is_found_whatever_was_done_to_its_text(text: str, marker: str, found: bool) -> None:
    """Spaces, case and entities may change; a long id is enough by itself, a short one never is."""
    assert carries(text, marker) is found
