"""Before a release: links of README.md that work on PyPI, and the project's addresses in pyproject.toml.

    python .github/absolute_links.py OWNER/REPOSITORY TAG

Changes both files in place. Only the release knows where the repository is, so no address is kept in it.
"""

import re
import sys
from pathlib import Path

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#|mailto:)([^)\s]+)\)")


def absolute(text, repository, tag):
    """Markdown whose relative links lead to the files of a tag; pictures to the files themselves."""

    def replace(match):
        picture, label, path = match.groups()
        kind = "raw" if picture else "blob"
        return f"{picture}[{label}](https://github.com/{repository}/{kind}/{tag}/{path})"

    return LINK.sub(replace, text)


def with_urls(text, repository):
    """pyproject.toml with `[project.urls]`."""
    home = f"https://github.com/{repository}"
    urls = {"Homepage": home, "Issues": f"{home}/issues", "Changelog": f"{home}/blob/main/CHANGELOG.md"}
    table = "\n".join(f'{name} = "{url}"' for name, url in urls.items())
    return text.rstrip("\n") + f"\n\n[project.urls]\n{table}\n"


def main(repository, tag, root="."):
    readme, project = Path(root) / "README.md", Path(root) / "pyproject.toml"
    readme.write_text(absolute(readme.read_text(), repository, tag))
    project.write_text(with_urls(project.read_text(), repository))


if __name__ == "__main__":
    main(*sys.argv[1:])
