"""The template of a command's runs, with small programs in place of imports and of what a run does."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.record_environment import Environment
from harness.runs import starting
from harness.runs.children import Children
from harness.runs.local import Device, LocalMachine
from harness.runs.starting import Forked, Process, Template, start_anew
from tests.records import ENVIRONMENT

pytestmark = pytest.mark.skipif(not Template.is_possible(), reason="templates are of Linux")

PREAMBLE = """
import os, resource, sys, threading, time
from harness.runs import child, template
state = []
def import_libraries(architectures):
    state.append(architectures)
def main():
    child.die_with_parent()
    line = sys.stdin.readline()
    exec(line)
    sys.stdout.flush()
child.import_libraries, child.main = import_libraries, main
"""
SERVES = PREAMBLE + "template.main()"
KEEPS_A_THREAD = PREAMBLE + "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\ntemplate.main()"


def never() -> bool:
    return False


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(text: str) -> None:
        monkeypatch.setattr(starting, "COMMAND", (sys.executable, "-P", "-c", text))

    use(SERVES)
    return use


@pytest.fixture
def make(program: Any) -> Iterator[Callable[[], Template]]:
    """Give what makes a template inside the test: pytest changes a variable of the environment before each."""
    made = []

    def one() -> Template:
        made.append(Template(["LlamaForCausalLM"]))
        return made[-1]

    yield one
    for template in made:
        template.close()


def said(started: Process, line: str) -> str:
    """Let a child execute a line; return what it prints, and wait for its end."""
    stdin, stdout = started.stdin, started.stdout
    assert stdin is not None and stdout is not None and started.stderr is not None
    with stdin, stdout, started.stderr:
        stdin.write(line.encode() + b"\n")
        stdin.flush()
        text = stdout.read().decode()
        os.waitpid(started.pid, 0)
    return text


def fork(template: Template, variables: Mapping[str, str] | None = None) -> Forked:
    started = template.start(variables or {}, never)
    assert isinstance(started, Forked)
    return started


def test_a_child_is_this_processs_own_leads_a_session_and_sees_its_variables(make: Callable[[], Template]) -> None:
    template = make()
    print_it = "print(os.getppid(), os.getsid(0), os.getpgid(0), os.environ['HARNESS_RANK'], state)"
    started = fork(template, {"HARNESS_RANK": "3"})
    assert started.pid != template.pid
    expected = f"{os.getpid()} {started.pid} {started.pid} 3 [['LlamaForCausalLM']]\n"
    assert said(started, print_it) == expected


def test_what_a_child_changes_no_other_sees(make: Callable[[], Template]) -> None:
    template = make()
    change = "state.append(1); os.environ['LEFT'] = '1'; os.chdir('/'); os.umask(0); sys.path.append('left')"
    change += "; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); print(os.getcwd())"
    assert said(fork(template), change) == "/\n"
    look = "print(len(state), os.environ.get('LEFT'), os.getcwd(), os.umask(0), 'left' in sys.path)"
    mask = os.umask(0)
    os.umask(mask)
    assert said(fork(template), look) == f"1 None {Path.cwd()} {mask} False\n"


def test_a_child_holds_no_descriptor_of_another_nor_the_templates_line(make: Callable[[], Template]) -> None:
    template = make()
    first = fork(template)
    look = "print(sorted(os.readlink(f'/proc/self/fd/{n}').partition(':')[0] for n in os.listdir('/proc/self/fd')[:3]))"
    look += "; print([n for n in os.listdir('/proc/self/fd') if int(n) > 2 and os.path.exists(f'/proc/self/fd/{n}')])"
    assert said(fork(template), look) == "['pipe', 'pipe', 'pipe']\n[]\n"
    said(first, "pass")


def test_limits_of_memory_hold_in_a_child(program: Any) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 45, before[1]))
    try:
        made = Template([])
        try:
            assert said(fork(made), "print(resource.getrlimit(resource.RLIMIT_AS)[0] == 1 << 45)") == "True\n"
        finally:
            made.close()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_child_that_is_killed_leaves_the_template(make: Callable[[], Template]) -> None:
    template = make()
    started = fork(template)
    at_first = template.pid
    os.killpg(started.pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(started.pid, 0)[1]) == -signal.SIGKILL
    assert said(fork(template), "print(1)") == "1\n"
    assert template.pid == at_first


def test_a_template_that_is_killed_is_replaced_and_its_child_goes_on(make: Callable[[], Template]) -> None:
    template = make()
    started = fork(template)
    at_first = template.pid
    assert at_first is not None
    os.kill(at_first, signal.SIGKILL)
    assert said(fork(template), "print(2)") == "2\n"
    assert template.pid not in (None, at_first)
    assert said(started, "print(1)") == "1\n"


def test_a_template_that_was_made_a_reaper_keeps_no_child(program: Any) -> None:
    program(PREAMBLE + "template.set_reaper(True)\ntemplate.main()")
    made = Template([])
    try:
        assert said(fork(made), "print(os.getppid())") == f"{os.getpid()}\n"
    finally:
        made.close()


def test_a_template_that_cannot_be_started_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "COMMAND", ("/nowhere/python",))
    made = Template([])
    try:
        assert made.pid is None
        started = made.start({}, never)
        assert isinstance(started, subprocess.Popen)
        started.kill()
        started.communicate()
    finally:
        made.close()


@pytest.mark.parametrize("text", ["raise SystemExit(1)", KEEPS_A_THREAD])
def test_a_template_that_cannot_serve_leaves_children_to_be_started_anew(program: Any, text: str) -> None:
    program(text)
    made = Template([])
    try:
        for _ in range(2):
            started = made.start({}, never)
            assert isinstance(started, subprocess.Popen)
            started.kill()
            started.communicate()
            assert made.pid is None
    finally:
        made.close()


def test_a_changed_environment_is_not_the_templates(
    make: Callable[[], Template], monkeypatch: pytest.MonkeyPatch
) -> None:
    template = make()
    started = [template.start({"OMP_NUM_THREADS": "3"}, never)]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    started.append(template.start({}, never))
    for one in started:
        assert isinstance(one, subprocess.Popen)
        one.kill()
        one.communicate()


def test_nobody_waits_for_a_template_once_a_stop_is_asked(program: Any) -> None:
    program("import time; time.sleep(60)")
    made = Template([])
    began = time.monotonic()
    try:
        started = made.start({}, lambda: time.monotonic() > began + 0.2)
        assert isinstance(started, subprocess.Popen)
        started.kill()
        started.communicate()
    finally:
        made.close()
    assert time.monotonic() - began < 20


def test_the_template_ends_with_its_parent_and_so_do_its_children(tmp_path: Path) -> None:
    parents = f"""
import sys, time
from harness.runs import starting
starting.COMMAND = (sys.executable, "-P", "-c", {SERVES!r})
made = starting.Template([])
one = made.start({{}}, lambda: False)
one.stdin.write(b"print('here', flush=True); time.sleep(600)\\n")
one.stdin.flush()
one.stdout.readline()
print(made.pid, one.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", parents], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        family = [psutil.Process(int(word)) for word in parent.stdout.readline().split()]
        assert len(family) == 2
        parent.kill()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []


def test_closing_ends_the_template_and_gives_orphans_back_to_whom_they_were(program: Any) -> None:
    before = starting._reaper()
    made = Template([])
    process = psutil.Process(made.pid)
    assert starting._reaper()
    made.close()
    assert (starting._reaper(), made.pid) == (before, None)
    psutil.wait_procs([process], timeout=10)
    assert not process.is_running()


def test_children_of_a_template_say_end_and_are_measured_as_others(make: Callable[[], Template]) -> None:
    template = make()
    children = Children([{}], template.start)
    (child,) = children._children
    assert isinstance(child._process, Forked)
    assert child._process.stdin is not None
    child._process.stdin.write(b"sum(range(3_000_000)); print('said', flush=True); os._exit(7)\n")
    child._process.stdin.flush()
    lines = []
    deadline = time.monotonic() + 20
    while not children.all_ended and time.monotonic() < deadline:
        lines.append(children.listen(0.1))
    children.kill()
    assert b"said\n" in lines
    used = children.used(1.0)
    assert child.returncode == 7
    assert used.cpu_seconds > 0 and used.host_peak_bytes > 1_000_000


@pytest.mark.parametrize(
    ("environment", "variables", "expected"),
    [
        (ENVIRONMENT, ({},), True),
        (ENVIRONMENT, ({"OMP_NUM_THREADS": "1"},), False),
        (ENVIRONMENT.model_copy(update={"device_type": "cuda"}), ({},), False),
    ],
)
def test_a_machine_has_a_template_where_runs_are_alike_and_on_a_cpu(
    program: Any, environment: Environment, variables: tuple[Mapping[str, str], ...], expected: bool
) -> None:
    machine = LocalMachine([Device(environment.model_copy(update={"device_type": environment.device_type}), variables)])
    machine.expect(["LlamaForCausalLM"])
    try:
        assert (machine._template is not None) is expected
    finally:
        machine.close()
    assert machine._template is None


def test_a_child_that_is_started_anew_leads_a_session() -> None:
    started = start_anew({}, never)
    assert isinstance(started, subprocess.Popen)
    assert os.getsid(started.pid) == started.pid
    started.kill()
    started.communicate()
