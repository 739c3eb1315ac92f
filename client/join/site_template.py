"""The site.toml that ``init`` writes where there is none yet: every part of it with a word on why."""

from __future__ import annotations

_TEXT = """\
# What this site brings to a federation. Images, tables and this file stay here.
# Lines that begin with # are examples or defaults. Paths are relative to this file's folder.
#
# To be asked instead: delete this file, run "fedcxr-site index" on this folder, which shows its
# guesses about the studies in it and writes the file anew, and give it the name below again.

# The name under which the centre knows this site. It stands in logs and reports and tells
# nothing about patients. The invitation is for this name.
name = "{name}"

# Where the studies are and how they are divided.
[data]
layout = "table"           # one row of the table per image; "folder": every image file under root
table = "studies.csv"      # CSV or Parquet; read here, never sent
root = "."                 # folder the images lie under; nothing outside it is read
cache = "cache"            # decoded pixels: patient data
state = "state"            # what is kept between rounds: local baseline, personal parts
views = ["PA", "AP"]       # other views are counted and left out; "any" keeps all
burned_in = "refuse"       # set aside if the header says that letters are burnt in
max_quarantined = 0.2      # the site stops if more of its images have a fault
split = [0.7, 0.1, 0.2]    # train, validation and test, always by patient
split_seed = 0             # the same seed is the same split for ever

# What the table calls things. Cells of these columns never leave the site.
[columns]
path = "path"              # image file, relative to data.root
patient = "patient"        # whatever tells patients apart
study = "study"            # groups the images of one examination
view = "view"              # PA, AP, ...; where empty, a DICOM file's own tag is read
age = "age"                # years, or 045Y
sex = "sex"                # M or F

# Finding = its column: 1 present, 0 absent, empty not annotated. "fedcxr-site index --suggest"
# proposes these lines for the table.
[labels]
# effusion = "Pleural Effusion"
# cardiomegaly = {{ column = "heart", positive = ["enlarged"], negative = ["normal"] }}

# What an uncertain label (-1) counts as, finding by finding; there is no silent default.
[uncertainty]
# effusion = "ones"        # counts as present; "zeros": as absent; "ignore": as not annotated

# What this site computes on.
[device]
name = "auto"              # auto, cpu, cuda or cuda:0
threads = 0                # CPU threads; 0 leaves it to torch

# What may be said about small numbers.
[evaluate]
min_cell = 11              # a finding with fewer positives or negatives leaves as "suppressed"
"""


def site_text(name: str) -> str:
    """Return the text of a new site's ``site.toml``; ``load_site`` reads it as it stands.

    >>> 'name = "north"' in site_text("north")
    True
    """
    return _TEXT.format(name=name)
