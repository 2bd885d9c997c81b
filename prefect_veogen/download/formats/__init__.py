"""Whether bytes are the media they claim to be, judged by their content alone while they stream by.

What a file says of itself (name, Content-Type) proves nothing: error pages are served as `.mp4` with status 200. Each
format here has a structure whose end is known, so a truncated file is noticed, and so is what stands behind the end.
"""

from prefect_veogen.download.formats.inspector import Inspector
from prefect_veogen.download.formats.stream import NotMedia

__all__ = ["Inspector", "NotMedia"]
