"""Whether bytes are the media they claim to be, decided by their content alone while they stream.

A file's name and Content-Type prove nothing: error pages are served as `.mp4` with status 200. Each format here has a
structure whose end is known, so that truncation is noticed, and so are bytes behind the end.
"""

from prefect_veogen.download.formats.inspector import Inspector
from prefect_veogen.download.formats.stream import NotMedia

__all__ = ["Inspector", "NotMedia"]
