"""One DICOM radiograph to grey values in [0, 1]. PS3.x are parts of the DICOM standard.

Everything that can be refused is refused from the header, before pixels cost memory.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import apply_modality_lut, apply_voi, get_decoder
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
)

from client.data.reasons import MAX_PIXELS, RefusedImage
