"""Guess what the columns of a table mean, from their names and from what stands in them.

A cell may hold a patient's name. Only words of a fixed list (yes, positive, ...) and small numbers
are ever handed on to be shown, and of a column that bears the name of a finding alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.data.columns import Text, numbers
from client.data.split import SPLITS
from common.clinical import VARIABLES, plausible, suggest_variables
from common.findings import suggest

NAMES: Mapping[str, tuple[str, ...]] = {
    "patient": (
        "patientid", "patient", "subjectid", "subject", "mrn", "medicalrecordnumber", "pid", "patid",
        "patno", "patnr", "patientnumber", "patientcode", "patientkey", "pseudonym",
        "patientennummer", "patientennr", "patientenid", "patientnummer", "personnummer", "cpr",
        "idpatient", "ipp", "numeropatient", "paciente", "pacienteid", "idpaciente", "nhc",
        "numerodehistoriaclinica", "numerohistoriaclinica", "prontuario", "paziente", "idpaziente",
        "pacjent", "idpacjenta", "hastano", "hastaid", "пациент", "患者id", "病人id", "病历号", "患者番号",
    ),
    "study": (
        "studyinstanceuid", "studyuid", "studyid", "study", "examid", "examinationid", "exam",
        "untersuchungsid", "untersuchung", "estudio", "idestudio", "estudioid", "examen", "idexamen",
        "esame", "idesame", "onderzoek", "badanie",
    ),
    "accession": (
        "accessionnumber", "accession", "accessionno", "accno", "acc", "accnumber",
        "anforderungsnummer", "auftragsnummer", "numeroaccession", "numerodeacceso",
    ),
    "instance": ("sopinstanceuid", "sopuid", "instanceuid", "instance", "imageuid"),
    "view": (
        "viewposition", "view", "projection", "viewpos", "imageview", "appa", "paap",
        "strahlengang", "aufnahmerichtung", "projektion", "incidence", "incidencia", "proyeccion",
        "projecao", "proiezione", "projectie", "projekcja", "проекция", "体位", "投照位",
    ),
    "age": (
        "patientage", "age", "ageyears", "ageatstudy", "ageatexam", "alter", "patientenalter", "edad",
        "idade", "eta", "leeftijd", "alder", "wiek", "yas", "возраст", "年龄", "年齢",
    ),
    "sex": (
        "patientsex", "sex", "gender", "patientgender", "geschlecht", "sexo", "sexe", "sesso", "genere",
        "genero", "genre", "geslacht", "kjønn", "køn", "kon", "plec", "cinsiyet", "пол", "性别", "性別",
    ),
    "split": ("split", "datasplit", "partition", "subset"),
    "report": (
        "report", "reporttext", "radiologyreport", "befund", "befundtext", "informe", "rapport",
        "referto", "laudo", "verslag",
    ),
    "indication": (
        "indication", "clinicalindication", "clinicalhistory", "fragestellung", "indicacion", "indicacao",
        "quesito", "quesitoclinico", "vraagstelling",
    ),
    "findings_text": ("findings", "findingstext"),
    "impression": ("impression", "conclusion", "beurteilung", "conclusiones"),
}  # fmt: skip
"""Role in ``[columns]`` -> names it is exported under: no case, accents, spaces or punctuation."""

_FREE_TEXT = {"report", "indication", "findings_text", "impression"}

OUTCOMES: Mapping[str, tuple[str, bool]] = {
    "wenticu": ("icu", True), "inicu": ("icu", True), "icu": ("icu", True), "icustay": ("icu", True),
    "uci": ("icu", True), "intensivstation": ("icu", True), "reanimation": ("icu", True),
    "intubationpresent": ("intubated", True), "ventilated": ("intubated", True),
    "beatmet": ("intubated", True), "intubado": ("intubated", True),
    "deceased": ("mortality", True), "dead": ("mortality", True), "expired": ("mortality", True),
    "verstorben": ("mortality", True), "exitus": ("mortality", True), "fallecido": ("mortality", True),
    "obito": ("mortality", True), "decede": ("mortality", True),
    "survival": ("mortality", False), "survived": ("mortality", False), "alive": ("mortality", False),
    "severity": ("severe", True),
}  # fmt: skip
"""Other names of outcomes -> finding, and whether yes means present: who survived did not die."""

_YES = {
    "yes", "y", "true", "t", "pos", "positive", "present", "+", "ja", "j", "si", "sí", "s", "oui", "o",
    "sim", "tak", "evet", "positiv", "positivo", "positif", "positief", "vorhanden", "presente", "да",
    "есть", "是", "有", "阳性", "陽性", "あり",
}  # fmt: skip
_NO = {
    "no", "n", "false", "f", "neg", "negative", "absent", "-", "nein", "non", "nee", "não", "nao", "nie",
    "hayir", "negativ", "negativo", "négatif", "negatif", "negatief", "ausente", "assente",
    "нет", "否", "无", "無", "阴性", "陰性", "なし",
}  # fmt: skip
_NEITHER = {
    "uncertain", "unclear", "unknown", "possible", "probable", "equivocal", "indeterminate", "maybe",
    "na", "n/a", "nan", "none", "null", "?", "not mentioned", "not assessed", "unklar", "unbekannt",
    "unsicher", "fraglich", "dudoso", "incierto", "incerto", "incertain",
}  # fmt: skip
_MOST_VALUES = 6
_HEAD = 200

_FRONTAL = {
    "PA", "AP", "P.A.", "A.P.", "AP SUPINE", "AP ERECT", "AP PORTABLE", "AP_HORIZONTAL", "AP HORIZONTAL",
    "PA ERECT", "FRONTAL", "POSTEROANTERIOR", "ANTEROPOSTERIOR", "POSTERO-ANTERIOR", "ANTERO-POSTERIOR",
}  # fmt: skip
_OTHER_VIEWS = {"L", "LL", "RL", "LAT", "LATERAL", "LLO", "RLO", "LAO", "RAO", "OBLIQUE", "LORDOTIC", ""}
_SEXES = ("M", "F", "MALE", "FEMALE")
_SPLIT_WORDS = {*SPLITS, "val", "valid"}


@dataclass(frozen=True)
class LabelGuess:
    """A column that may hold a finding."""

    finding: str
    column: str
    values: tuple[str, ...] = ()
    """What stands in it, fit to be shown; none if it is 1, 0, -1 and empty."""
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    uncertain: int = 0
    """Cells of -1, for which there must be a policy."""

    @property
    def settled(self) -> bool:
        """Tell whether it is known which values mean present and absent."""
        return not self.values or bool(self.positive and self.negative)


def key(name: str) -> str:
    """Return a name without case, accents, spaces and punctuation.

    >>> key("Número de Historia-Clínica"), key("(0010,0020) PatientID")
    ('numerodehistoriaclinica', '00100020patientid')
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", name.lower()) if not unicodedata.combining(c))
    return re.sub(r"[\W_]+", "", plain)


def by_name(names: Iterable[str]) -> dict[str, str]:
    """Map roles to the columns that carry one of their names, the usual names first.

    >>> by_name(["Geschlecht", "Patient ID", "StudyInstanceUID", "Befund"])
    {'patient': 'Patient ID', 'study': 'StudyInstanceUID', 'sex': 'Geschlecht', 'report': 'Befund'}
    """
    keys = {name: key(name) for name in reversed(list(names))}
    found: dict[str, str] = {}
    for role, known in NAMES.items():
        of_key = {k: name for name, k in keys.items() if name not in found.values()}
        exact = next((of_key[k] for k in known if k in of_key), None)
        # A prefix such as dicom_ or a tag's number before a long, telling name.
        ending = next((of_key[k] for k in of_key if k.endswith(tuple(n for n in known if len(n) > 7))), None)
        if column := exact or ending:
            found[role] = column
    return found


def headerless(names: Sequence[str]) -> bool:
    """Tell whether the first row looks like data, whose cells must not be taken for column names.

    >>> headerless(["Doe^John", "a/1.png", "M"]), headerless(["patient", "path", "sex"])
    (True, False)
    """
    return any(
        "^" in name
        or re.search(r"\.(png|jpe?g|dcm|dicom)$", name.lower())
        or re.fullmatch(r"[\d.,:/\-+ ]+|\d{3}[YMWD]|[\d.]{12,}", name)
        for name in names
        if name
    )


def roles(columns: Mapping[str, Text]) -> tuple[dict[str, str], list[str]]:
    """Guess the ``[columns]`` of a table but for the path; also say what was doubted, naming no cell."""
    found = by_name(columns)
    remarks: list[str] = []
    for role, column in list(found.items()):
        if why := _doubt(role, columns[column]):
            del found[role]
            remarks.append(f"column {column!r} is not taken for the {role}: {why}")
    if "view" not in found:
        free = (name for name in columns if name not in found.values())
        if column := next((name for name in free if _is_view(columns[name])), ""):
            found["view"] = column
    if "sex" in found:
        cells = columns[found["sex"]]
        other = (cells != "") & ~np.isin(np.char.upper(cells), _SEXES)
        if other.mean() > 0.2:
            remarks.append(f"column {found['sex']!r}: what is not M, F, Male or Female counts as unknown")
    if "patient" in found:
        cells = columns[found["patient"]]
        if empty := int((cells == "").sum()):
            remarks.append(f"column {found['patient']!r} is empty in {empty:,} rows: they are set aside")
        if len(cells) >= 50 and len(np.unique(cells)) == len(cells):
            remarks.append(
                f"column {found['patient']!r} differs in every row: does it number images, not patients?"
            )
    return found, remarks


def _doubt(role: str, cells: Text) -> str:
    """Say why a column cannot play a role in spite of its name; '' if it can."""
    filled = cells[cells != ""]
    if not len(filled):
        return "it is empty"
    if role == "patient" and len(filled) > 20 and len(np.unique(filled)) == 1:
        return "it is the same in every row"
    if role == "sex" and not np.isin(np.char.upper(filled), _SEXES).any():
        return "it holds neither M nor F, Male nor Female"
    if role == "split" and not set(np.unique(np.char.lower(cells)).tolist()) <= _SPLIT_WORDS:
        return "some rows are not train, validation (val, valid) or test; rename it if it is called split"
    if role in _FREE_TEXT and np.char.str_len(filled).mean() < 12:
        return "its cells are too short for a text"
    return ""


def _is_view(cells: Text) -> bool:
    words = set(np.unique(np.char.upper(cells)).tolist())
    return bool(words & _FRONTAL) and words <= _FRONTAL | _OTHER_VIEWS


def frontal(cells: Text) -> tuple[str, ...]:
    """Return the spellings of frontal views among the cells, the most frequent first."""
    words, counts = np.unique(np.char.upper(cells), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return tuple(str(word) for word in words[order] if word in _FRONTAL)


def labels(columns: Mapping[str, Text]) -> tuple[list[LabelGuess], list[str]]:
    """Guess the label and outcome columns; also say which bear a finding's name and hold none."""
    present = {finding: (name, True) for finding, name in suggest(columns).items()}
    for name in columns:
        if key(name) in OUTCOMES:
            finding, straight = OUTCOMES[key(name)]
            present.setdefault(finding, (name, straight))
    guesses, remarks = [], []
    for finding, (name, straight) in present.items():
        if guess := _label(finding, name, columns[name], straight):
            guesses.append(guess)
        else:
            remarks.append(f"column {name!r} is not taken for {finding}: its cells are no labels")
    for name, cells in columns.items():
        if name not in {column for column, _ in present.values()} and _lists_findings(cells):
            remarks.append(
                f"column {name!r} lists several findings in one cell: give each a column of 1 and 0"
            )
    return guesses, remarks


def _lists_findings(cells: Text) -> bool:
    parts = [re.split(r"[|;,]", str(cell)) for cell in cells[cells != ""][:_HEAD]]
    known = sum(any(suggest([word]) for word in words) for words in parts)
    return any(len(words) > 1 for words in parts) and known > 0.2 * len(parts)


def _label(finding: str, name: str, cells: Text, straight: bool) -> LabelGuess | None:
    filled = cells[(cells != "") & (np.char.lower(cells) != "nan")]
    if not len(filled):
        return None
    values, _ = numbers(filled)
    if straight and np.isin(values, (0.0, 1.0, -1.0)).mean() > 0.9:
        return LabelGuess(finding, name, uncertain=int((values == -1).sum()))
    words = [str(word) for word in np.unique(filled)]
    if len(words) > _MOST_VALUES or not all(_may_be_shown(word) for word in words):
        return None
    positive = tuple(word for word in words if _means(word, _YES, 1))
    negative = tuple(word for word in words if _means(word, _NO, 0))
    if not straight:
        positive, negative = negative, positive
    return LabelGuess(finding, name, tuple(words), positive, negative)


def _means(word: str, words: set[str], number: int) -> bool:
    value = numbers(np.array([word]))[0][0]
    return word.lower() in words or value == number


def _may_be_shown(word: str) -> bool:
    """Tell whether a value of a label column can be nobody's name or number."""
    return word.lower() in _YES | _NO | _NEITHER or bool(re.fullmatch(r"-?\d{1,2}(\.\d)?", word))


def clinical(columns: Mapping[str, Text]) -> tuple[dict[str, str], list[str]]:
    """Guess the clinical variables; age and male are read from ``[columns]``, in other units none is."""
    found: dict[str, str] = {}
    remarks: list[str] = []
    for variable, name in suggest_variables(columns).items():
        if variable in ("age", "male"):
            continue
        values, _ = numbers(columns[name])
        filled = columns[name] != ""
        known = values[~np.isnan(values)]
        if not filled.any() or len(known) < 0.5 * filled.sum():
            remarks.append(f"column {name!r} is not taken for {variable}: most cells are no numbers")
        elif _share(plausible(known, variable)) < 0.5:
            about = VARIABLES[variable]
            remarks.append(
                f"column {name!r} is not taken for {variable}: most values lie outside "
                f"{about.low:g} to {about.high:g} {about.unit}; another unit?"
            )
        else:
            found[variable] = name
    return found, remarks


def _share(values: NDArray[np.float64]) -> float:
    return float((~np.isnan(values)).mean())
