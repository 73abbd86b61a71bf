"""Whoever scores the student's completions: a model in the training process, or a server.

`interface` is what the trainer asks for. Most answer in hidden states (`hidden_states`): `local`, `own_base`, which is
the student without its adapters, and over HTTP (`client`) a server of `states`; another gives a few log-probabilities
a token (`server`, `logprobs`). `several` makes one of many; `build` comes from a recipe to its teachers, by way of
`local_backend` or `server_backend`.
"""

from vopd_recipes.teacher.build import as_teachers, connect_to_teacher, teacher_tokenizer
from vopd_recipes.teacher.client import TeacherUnavailable, give_up
from vopd_recipes.teacher.interface import Teacher, TeacherView
from vopd_recipes.teacher.local import LocalTeacher
from vopd_recipes.teacher.logprobs import ServerTeacher
from vopd_recipes.teacher.own_base import OwnBase
from vopd_recipes.teacher.server import TeacherServer
from vopd_recipes.teacher.several import SeveralTeachers
from vopd_recipes.teacher.states import StatesServer, StatesTeacher
