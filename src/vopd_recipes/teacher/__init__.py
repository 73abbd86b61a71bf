"""Whoever scores the student's completions: a model in the training process, or a server.

`interface` is what the trainer asks for; `local` answers with hidden states, `logprobs` with what `server` says over
HTTP.
"""

from vopd_recipes.teacher.interface import Teacher, TeacherView
from vopd_recipes.teacher.local import LocalTeacher
from vopd_recipes.teacher.logprobs import ServerTeacher
from vopd_recipes.teacher.server import TeacherServer, TeacherUnavailable
