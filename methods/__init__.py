"""The methods of this benchmark."""

from __future__ import annotations

from methods.acmt import ACMT
from methods.base import Method
from methods.bcp import BCP
from methods.caussl import CauSSLCPS, CauSSLMC
from methods.ccnet import CCNet
from methods.cds import CDS
from methods.cobionet import CoBioNet
from methods.coranet import CoraNet
from methods.cpcl import CPCL
from methods.cps import CPS
from methods.dtc import DTC
from methods.mcf import MCF
from methods.mcnet import MCNet, MCNetPlus
from methods.mean_teacher import MeanTeacher
from methods.mrpl import MRPL
from methods.sassnet import SASSNet
from methods.supervised import Supervised
from methods.tac import TAC
from methods.tcseg import TCSeg
from methods.tracoco import TraCoCo
from methods.uamt import UAMT
from methods.ugmcl import UGMCL
from methods.urpc import URPC

METHODS: tuple[type[Method], ...] = (
    Supervised,
    MeanTeacher,
    UAMT,
    DTC,
    TCSeg,
    ACMT,
    BCP,
    CauSSLCPS,
    CauSSLMC,
    CCNet,
    CDS,
    CoBioNet,
    CoraNet,
    CPCL,
    CPS,
    MCF,
    MCNet,
    MCNetPlus,
    MRPL,
    SASSNet,
    TAC,
    TraCoCo,
    UGMCL,
    URPC,
)
