from harness.api.reports import Report as Report
from harness.api.results import Results as Results
from harness.api.results import read as read
from harness.api.running import run as run
from harness.errors import HarnessError as HarnessError

__version__: str
