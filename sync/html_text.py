"""HTML as readable text: paragraphs, lists, links and tables survive, markup does not. Never fails on broken HTML."""

import re
from html.parser import HTMLParser


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


BLOCKS = _words(
    "address article aside blockquote dd details dl dt fieldset figure footer form header main nav ol pre section ul "
    "table tr div li"
)
PARAGRAPHS = _words("p h1 h2 h3 h4 h5 h6 ul ol table pre blockquote")
HIDDEN = _words("script style head title template noscript")
INLINE = _words(
    "a abbr acronym b base bdi bdo big body br button caption center cite code col colgroup del dfn em font hr html i "
    "img input ins kbd label legend link mark meta option q s samp select small span strike strong sub summary sup "
    "tbody td textarea tfoot th thead time tt u var video wbr"
)
MAX_CHARS = 100_000  # read at most; some broken HTML takes the parser quadratic time, and no target takes as much text
TAGS = BLOCKS | PARAGRAPHS | HIDDEN | INLINE
LOOKS_LIKE_HTML = re.compile(
    rf"</?(?:{'|'.join(sorted(TAGS))})(?:\s[^<>]*)?/?>|<!doctype|<!--|&(?:nbsp|amp|lt|gt|quot|#x?[0-9a-f]+);",
    re.IGNORECASE,
)


def html_to_text(text: str) -> str:
    """Return the readable text of HTML; a text that is not HTML keeps its words and lines as they are."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not LOOKS_LIKE_HTML.search(text):
        return text.strip()
    reader = _Reader()
    reader.feed(_without_comments(text))
    reader.close()
    return reader.text()


def _without_comments(text: str) -> str:
    """Take comments out beforehand: the parser needs quadratic time for many that are never closed."""
    parts: list[str] = []
    position = 0
    while (start := text.find("<!--", position)) >= 0:
        parts.append(text[position:start])
        end = text.find("-->", start + 4)
        if end < 0:
            return "".join(parts) + text[start:].replace("<!--", "")
        position = end + 3
    return "".join(parts) + text[position:]


class _Reader(HTMLParser):
    """Collects text and line breaks while the parser walks through the tags."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._hidden: list[str] = []
        self._verbatim = 0
        self._lists: list[int | None] = []  # the last number of an ordered list, None for an unordered one
        self._link: tuple[str, int] | None = None  # address, position of its text in the parts; links do not nest

    def text(self) -> str:
        """Return what was collected, with one space between words and at most one empty line."""
        lines = (line.rstrip() for line in "".join(self._parts).split("\n"))
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip().replace("\x00", " ")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in HIDDEN:
            self._hidden.append(tag)
        elif "@" in tag or ":/" in tag:  # <ada@example.com> is an address that nobody escaped
            self._parts.append(self.get_starttag_text() or "")
        elif tag == "br":
            self._parts.append("\n")
        elif tag == "hr":
            self._break(2)
            self._parts.append("----")
            self._break(2)
        elif tag in BLOCKS or tag in PARAGRAPHS:
            self._open_block(tag)
        elif tag in {"td", "th"} and self._parts and not self._parts[-1].endswith("\n"):
            self._parts.append(" | ")
        elif tag == "img":
            alt = dict(attrs).get("alt")
            self._parts.append(f"[{alt}]" if alt else "")
        elif tag == "a":
            self._link = (dict(attrs).get("href") or "").strip(), len(self._parts)
        elif tag == "body":
            self._hidden.clear()  # a head that nobody closed

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]
        elif tag in BLOCKS or tag in PARAGRAPHS:
            self._close_block(tag)
        elif tag == "a" and self._link:
            self._close_link(*self._link)
            self._link = None

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if self._verbatim:
            self._parts.append(data)
            return
        # Spaces of the layout join; a non-breaking space is one that the writer meant, kept until the end.
        words = re.sub(r"[ \t\n\f]+", " ", data.replace("\xa0", "\x00"))
        if words.startswith(" ") and (not self._parts or self._parts[-1][-1:] in {"\n", " ", ""}):
            words = words[1:]
        if words:
            self._parts.append(words)

    def _open_block(self, tag: str) -> None:
        self._break(1 if tag in {"ul", "ol"} and self._lists else 2 if tag in PARAGRAPHS else 1)
        self._verbatim += tag == "pre"
        if tag in {"ul", "ol"}:
            self._lists.append(0 if tag == "ol" else None)
        elif tag == "li":
            number = self._lists[-1] if self._lists else None
            if number is not None:
                self._lists[-1] = number + 1
            sign = "- " if number is None else f"{number + 1}. "
            self._parts.append("  " * min(len(self._lists) - 1, 8) + sign)

    def _close_block(self, tag: str) -> None:
        if tag == "pre":
            self._verbatim = max(0, self._verbatim - 1)
        if tag in {"ul", "ol"} and self._lists:
            self._lists.pop()
        self._break(2 if tag in PARAGRAPHS and not (tag in {"ul", "ol"} and self._lists) else 1)

    def _close_link(self, address: str, position: int) -> None:
        shown = "".join(self._parts[position:]).strip()
        plain = address.removeprefix("mailto:")
        if address.startswith(("https://", "http://", "mailto:")) and plain.rstrip("/") != shown.rstrip("/"):
            self._parts.append(f" ({plain})" if shown else plain)

    def _break(self, lines: int) -> None:
        """End the line; with 2, leave an empty one."""
        if not self._parts:
            return
        ending = "".join(self._parts[-2:])[-2:]
        have = len(ending) - len(ending.rstrip("\n"))
        item_begins = bool(re.fullmatch(r" *(?:-|\d+\.) ", self._parts[-1]))
        if have < lines and not item_begins:  # <li><p>: the paragraph stays on the line of its sign
            self._parts.append("\n" * (lines - have))
