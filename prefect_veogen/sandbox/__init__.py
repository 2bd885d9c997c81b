"""A local Veogen Studio to try pipelines on, offline and free of charge, with every failure on demand.

    from prefect_veogen.sandbox import Sandbox

    with Sandbox(tiny_media=True, speed=60) as sandbox:
        sandbox.fault("lost-answer-after-charge")
        ...  # run a pipeline against sandbox.base_url
        assert len(sandbox.bill) == 1

From a shell: ``python -m prefect_veogen.sandbox``. In pytest: the fixture ``veogen_sandbox``.
"""

from prefect_veogen.sandbox.faults import FAULTS, Fault
from prefect_veogen.sandbox.server import Sandbox

__all__ = ["FAULTS", "Fault", "Sandbox"]
