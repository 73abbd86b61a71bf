"""Whoever scores the student's completions: a model in the training process, or a server.

`interface` is what the trainer asks for. `local` answers with hidden states; over HTTP (`client`) a server gives a few
log-probabilities a token (`server`, `logprobs`) or hidden states as well (`states`).
"""

from vopd_recipes.teacher.client import TeacherUnavailable
from vopd_recipes.teacher.interface import Teacher, TeacherView
from vopd_recipes.teacher.local import LocalTeacher
from vopd_recipes.teacher.logprobs import ServerTeacher
from vopd_recipes.teacher.server import TeacherServer
from vopd_recipes.teacher.states import StatesServer, StatesTeacher
