"""The methods of this benchmark."""

from __future__ import annotations

from methods.base import Method
from methods.dtc import DTC
from methods.mean_teacher import MeanTeacher
from methods.supervised import Supervised
from methods.tcseg import TCSeg
from methods.uamt import UAMT

METHODS: tuple[type[Method], ...] = (Supervised, MeanTeacher, UAMT, DTC, TCSeg)
