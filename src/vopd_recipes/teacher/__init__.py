"""Whoever scores the student's completions: a model in the training process, or a server.

`interface` is what the trainer asks for. `local` answers with hidden states, `own_base` with those of the student
without its adapters; over HTTP (`client`) a server gives a few log-probabilities a token (`server`, `logprobs`) or
hidden states as well (`states`). `several` makes one of many; `build` comes from a recipe to its teachers.
"""

from vopd_recipes.teacher.build import as_teachers, connect_to_teacher, teacher_tokenizer
from vopd_recipes.teacher.client import TeacherUnavailable
from vopd_recipes.teacher.interface import Teacher, TeacherView
from vopd_recipes.teacher.local import LocalTeacher
from vopd_recipes.teacher.logprobs import ServerTeacher
from vopd_recipes.teacher.own_base import OwnBase
from vopd_recipes.teacher.server import TeacherServer
from vopd_recipes.teacher.several import SeveralTeachers
from vopd_recipes.teacher.states import StatesServer, StatesTeacher
