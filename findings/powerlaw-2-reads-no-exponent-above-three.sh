#!/usr/bin/env bash
# powerlaw 2 bounds the exponent by 3: Fit(data) of a power law of exponent 4 says 3.0, and picks another tail for it.
#
# A good guess: powerlaw.Fit(data).power_law.alpha is the maximum-likelihood exponent of the tail of the least
#   Kolmogorov-Smirnov distance, as in version 1 and as in the paper that the package is of (Clauset et al. 2009).
# What happens: since 2.0 a power law has a default parameter range of alpha from 0 to 3. A fit above it counts as not
#   valid: where some tail has an exponent below 3, that one is taken without a word, however badly it fits; where none
#   has, and where xmin is given, alpha is set to 3, and warnings say that it is close to the edge of its range.
# Why it matters: exponents of the spectra of weights (heavy-tailed self-regularisation: WeightWatcher, AlphaPruning,
#   TempBalance, layer selection by alpha) run from 2 to 6 and more; of the 32 published block means of LLaMA-2-7B 25 lie
#   above 3. Read with powerlaw 2, light-tailed layers all look alike, at 3, or are ranked by another part of their
#   spectrum; the same script with powerlaw 1.5 ranks them otherwise.
# What to do: pass parameter_ranges={"alpha": [1.0, None]}; or pin powerlaw<2; or use the closed form
#   alpha = 1 + n / sum(log(x / xmin)).
# Where: powerlaw 2.0.0, distributions.py, Power_Law.DEFAULT_PARAMETER_RANGES; fitting.py, Fit.find_xmin.
#
# Needs Python 3.11 to 3.13 and the package index; CPU only.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cat > "$place/fit.py" <<'PY'
import sys
import warnings
from importlib.metadata import version

import numpy as np
import powerlaw

new = version("powerlaw").startswith("2.")
print(f"powerlaw {version('powerlaw')}, numpy {version('numpy')}")
failed = []


def fit(data, **given):
    """Return the fitted exponent, where its tail begins, and whether a warning was given."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sys.stdout, out = open("/dev/null", "w"), sys.stdout
        try:
            found = powerlaw.Fit(data, verbose=False, **given)
            alpha = found.power_law.alpha
        finally:
            sys.stdout = out
    return alpha, found.xmin, any(one.category.__name__ in ("UserWarning", "OptimizeWarning") for one in said)


def check(what, holds):
    print(f"  {'as said' if holds else 'NOT AS SAID'}: {what}")
    failed.extend([] if holds else [what])


samples = (1.0 - np.random.default_rng(0).random(1000)) ** (-1.0 / 3.0)  # a power law of exponent 4 from 1
closed = 1.0 + len(samples) / np.log(samples).sum()
whole, given = fit(samples), fit(samples, xmin=1.0)
print(f"  exponent 4, closed form {closed:.3f}: best tail {whole[0]:.3f} from {whole[1]:.3f}, from 1: {given[0]:.3f}")
weight = np.random.default_rng(2).standard_normal((64, 96))
spectrum = np.linalg.svd(weight, compute_uv=False) ** 2
tail = fit(spectrum)
print(f"  spectrum of a random 64 x 96 matrix: {tail[0]:.3f} from {tail[1]:.1f}, a warning: {tail[2]}")
if new:
    check("a power law of exponent 4 is read as 3", abs(whole[0] - 3.0) < 1e-6 and abs(given[0] - 3.0) < 1e-6)
    free = {"parameter_ranges": {"alpha": [1.0, None]}}
    check("with a range of one's own it is 4", abs(fit(samples, **free)[0] - 4.0) < 0.2)
    open_tail = fit(spectrum, **free)
    print(f"  the same spectrum with a range of one's own: {open_tail[0]:.3f} from {open_tail[1]:.1f}")
    check("another tail of the spectrum is taken", open_tail[0] > 3.0 > tail[0] and open_tail[1] != tail[1])
    check("without a warning", not tail[2])
else:
    check("a power law of exponent 4 is read as 4", abs(whole[0] - 4.0) < 0.2 and abs(given[0] - closed) < 1e-6)
    check("the tail of the spectrum has an exponent above 3", tail[0] > 3.0)
sys.exit(bool(failed))
PY
for release in 1.5 2.0.0; do
    python3 -m venv "$place/$release"
    "$place/$release/bin/python" -m pip install --quiet "powerlaw==$release" numpy==2.4.6 scipy mpmath matplotlib
    (cd "$place" && OMP_NUM_THREADS=1 "$place/$release/bin/python" fit.py)
done
echo "as described: version 2 reads an exponent of 4 as 3, and takes another tail; version 1 does neither"
