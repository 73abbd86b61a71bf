r"""One answer in many writings: what is the same, and what looks alike and is not.

Each line is `answer @ gold`. Golds are written as data sets have them: Minerva's in E notation and numpy's names,
MATH-500's with units and half-written fractions.
"""

import time
from collections.abc import Iterator
from fractions import Fraction

import pytest

from vopd_recipes.grading import MathGrader, answer_key
from vopd_recipes.grading.answers import for_math_verify, quick_verdict

RIGHT = r"""
4.5 \times 10^{33} @ 4.5e33
4.5\cdot 10^{33} @ 4.5e33
4.5 × 10^{33} @ 4.5e33
4.5 * 10^33 @ 4.5e33
4.5E33 @ 4.5e33
45 \times 10^{32} @ 4.5e33
4.5\times10^{33}\ \mathrm{erg/s} @ 4.5e33
4.5 \times 10^{33} \text{ erg s}^{-1} @ 4.5e33
4.5 \times 10^{33} erg/s @ 4.5e33
L = 4.5 \times 10^{33} @ 4.5e33
L \approx 4.5 \times 10^{33} \mathrm{~erg} \mathrm{~s}^{-1} @ 4.5e33
\frac{9}{2} \times 10^{33} @ 4.5e33
300000000 @ 3e8
300{,}000{,}000 @ 3e8
3 \times 10^8 \text{ m/s} @ 3e8
3 \times 10^8 m/s @ 3e8
0.000116 @ 1.16e-4
10^{-8} @ 1e-8
1\times10^{-8} @ 1e-8
-2.88 \times 10^{-19}\,\mathrm{J} @ -2.88e-19
(2, 1e-3) @ (2,0.001)
6.72 \times 10^{-5} @ .0000672
33.333333 @ \frac{100}{3}
1.414214 @ \sqrt{2}
90° @ 90^\circ
90 degrees @ 90^\circ
90^{\circ} @ 90
\frac{270}{7} @ \frac{270}7 degrees
\frac{270}{7}^\circ @ \frac{270}7 degrees
\approx 1.6 @ 1.6
x \approx 1.6 @ 1.6
= 25 @ 25
25\  @ 25
\underline{25} @ 25
\mathbf{25} @ 25
\displaystyle\frac12 @ \frac12
10 cm @ 10
10 cm^2 @ 10
10 \text{ cm} @ 10 cm
5 m @ 5
5 m @ 5\text{ m}
5 m/s @ 5\text{ m} \cdot \text{s}^{-1}
5\text{ cm} @ 5\text{ centimeters}
5.4 @ 5.4  cents
5.4\text{ cents} @ 5.4  cents
9.25 m @ \frac{37}{4} m
\frac{t}{m} @ \frac{1}{m} t
\frac{c}{\sqrt 2} @ \frac{1}{\sqrt{2}}c
5\text{ million} @ 5000000
50\text{ percent} @ 50\%
2 1/3 @ \frac{7}{3}
2 1/3 @ 2\frac13
137 \frac{1}{2} @ 137 1/2
137.5 @ 137 1/2
-1.5 @ -3./2
-\frac{3}{2} @ -3./2
-\frac13 @ -1./3
\arcsin(10/13) @ np.arcsin(10/13)
\arcsin\left(\frac{10}{13}\right) @ np.arcsin(10/13)
\sqrt 13 @ \sqrt{13}
3\sqrt{13} @ 3\sqrt13
E_1, E_2 @ E_{1},E_{2}
m c^2 @ m c^{2}
\pm 3 @ 3,-3
3, -3 @ \pm 3
x = \pm 3 @ 3,-3
2\pm\sqrt{3} @ 2+\sqrt3,2-\sqrt3
\text{East} @ \text{east}
Tuesday @ \text{tuesday}
52_{9} @ 52_9
52 @ 52_9
f\text{ is odd} @ f \text{ is odd}
3 x 10^8 @ 3e8
\pi \text{ sq units} @ \pi\text{ square units}
3\pi\text{ cm}^2 @ 3\pi
5\text{ thousand} @ 5000
1.5\% @ 0.015
-6.3 \times 10^{4}\, \text{J/mol} @ -6.3e4
[0, 1.5 \times 10^{-3}] @ [0,0.0015]
m + n = 204 @ 204
\angle ABC = 120^\circ @ 120
\angle ABC = 120^\circ @ 120^\circ
\cos A = \frac{1}{3} @ \frac13
\Delta E = 12.4 @ 12.4
10p+q = 204 @ 204
P(X = 2) = \frac{3}{8} @ \frac38
|AB| = 5 @ 5
\frac{AB}{CD} = \frac{2}{3} @ \frac23
x^2 + y^2 = 25 @ 25
5 = x @ 5
x = \frac{10}{2} = 5 @ 5
2^5 = 32 @ 32
\log_2 x = 3 @ 3
\sin 2\theta = \frac12 @ \frac12
\text{Area} = 12 @ 12
\text{Number of ways} = 12 @ 12
[ABC] = 12 @ 12
a_{10}=55 @ 55
\tan\theta = 2 @ 2
f(x) = x^2+1 @ x^2+1
(x,y) = (1,2) @ (1,2)
3\sqrt{13} \approx 10.82 @ 3\sqrt{13}
3\sqrt{13} \approx 10.82 @ 10.82
d = 3\sqrt{13} ≈ 10.82 @ 3\sqrt{13}
\frac{1}{3} \approx 0.333 @ \frac13
\frac{1}{3} = 0.333 @ \frac13
2\pi \approx 6.28 \text{ cm} @ 2\pi
e^2 \approx 7.389 @ e^2
4.5e33 \frac{\text{erg}}{\text{s}} @ 4.5e33
4.5 \times 10^{33}\frac{\text{erg}}{\text{s}} @ 4.5e33
12 \mu\text{m} @ 12
12\ \mu m @ 12
1.5\,\Omega @ 1.5
3.2 M_\odot @ 3.2
3.2\,M_{\odot} @ 3.2
5.1\ \mathring{A} @ 5.1
5.1 Å @ 5.1
12 microns @ 12
12 \text{ microns} @ 12
12\ \mu\text{m} @ 12\text{ microns}
4.5×10³³ @ 4.5e33
√51 @ \sqrt{51}
2√13 @ 2\sqrt{13}
2*pi @ 2\pi
10 000 @ 10000
\[5\] @ 5
**5** @ 5
5, @ 5
5. @ 5
1/2. @ \frac12
x² + 1 @ x^2+1
y' + ry - rx(t) = 0 @ y^{\prime}+r y-r x(t)=0
y^\prime + r y = r x(t) @ y^{\prime}+r y-r x(t)=0
\frac{dy}{dt} + r y = r x(t) @ y^{\prime}+r y-r x(t)=0
\dot{x} = kx - a @ \frac{d x}{d t}=k x-a
\frac{dx}{dt} - kx = -a @ \frac{d x}{d t}=k x-a
kx-a @ \frac{d x}{d t}=k x-a
\hbar\omega(v+1/2) @ \hbar \omega(v+1 / 2)
\hbar\omega(v+\frac12)-\frac{E_0^2 e^2}{2m\omega^2} @ \hbar \omega(v+1 / 2)-\frac{E_{0}^{2} e^{2}}{2 m \omega^{2}}
\text{MR} = \text{SRMC} @ MR=SRMC
SRMC = MR @ MR=SRMC
\frac{\lambda_{red}}{\sqrt{2}} @ \lambda_{\text {red}} / \sqrt{2}
\frac{\lambda_\text{red}}{\sqrt{2}} @ \lambda_{\text {red}} / \sqrt{2}
\frac{2A(1-i)}{3} e^{it} @ \frac{4 A}{3+3 i} e^{i t}
\frac{(1-i)e^{2it}}{4} @ \frac{e^{2 i t}}{(2+2 i)}
m\dot v + bv = f @ m \frac{d v}{d t}+b v=f
\frac{dv}{dt} + \frac{b}{m} v = \frac{f}{m} @ m \frac{d v}{d t}+b v=f
f = m\frac{dv}{dt}+bv @ m \frac{d v}{d t}+b v=f
L C \frac{d^2 v_o}{dt^2} + v_o = v_i @ \frac{d^{2} v_{o}}{d t^{2}}+\frac{v_{o}}{L C}=\frac{v_{i}}{L C}
-2 \le x \le 7 @ x \in [-2,7]
[-2,7] @ x \in [-2,7]
7 \ge x \ge -2 @ x \in [-2,7]
12:00 @ 12:00
1:03 PM @ \text{1:03 PM}
1:03 \text{ p.m.} @ \text{1:03 PM}
1\!:\!03 \text{ p.m.} @ 1:03\text{ pm}
2:3 @ 4:6
\frac{2}{3} @ 2:3
\bigl(3, \frac{\pi}{2}\bigr) @ \left( 3, \frac{\pi}{2} \right)
\bigl[0,1\bigr) @ [0,1)
(52)_8 @ 52_8
\text{52}_8 @ 52_8
52_{\text{8}} @ 52_8
3, 5, and 7 @ 3, 5, 7
3 and 5 @ 3,5
3, 5\text{, and }7 @ 7,5,3
x = 1 \text{ or } x = -2 @ 1,-2
x=1, x=-2 @ -2,1
x < 2 \text{ or } x > 3 @ (-\infty,2)\cup(3,\infty)
(-\infty,2)\cup(3,\infty) @ x<2 \text{ or } x>3
\{x \mid x > 2\} @ (2,\infty)
x \ne 3 @ (-\infty,3)\cup(3,\infty)
12,000,085 @ 12,\!000,\!085
10{,}000 @ 10,000
115,000 @ \$115,000
2007 + \frac{\pi}{2} @ 2007 + \frac\pi 2
11,111,111,100 @ 11,\! 111,\! 111,\! 100
3, 105, 210 @ 210, 105, 3
200, 100 @ 100, 200
81,256 @ 81, 256
100,200,300 @ 100, 200, 300
(a+5)(b+2) @ (b+2)(a+5)
\sqrt{a}\sqrt{b} @ \sqrt{ab}
2r\sqrt{\pi G\rho} @ \sqrt{4\pi G \rho r^2}
\frac{1}{2}(e^{at}+e^{-at}) @ \frac{1}{2}(\exp{a*t} + \exp{-a*t})
\cosh(at) @ \frac{1}{2}(\exp{a*t} + \exp{-a*t})
\cos (\omega t)+\frac{\dot{x}_{0}}{\omega} \sin (\omega t) @ \cos (\omega t)+\dot{x}_{0} \sin (\omega t) / \omega
5x - 7y + 11z = -4 @ 5x - 7y + 11z + 4 = 0
10x - 14y + 22z + 8 = 0 @ 5x - 7y + 11z + 4 = 0
y - 3 = 2x @ y = 2x + 3
\text{no solution} @ \text{No solution}
MR @ \text{MR}
2\text{ and }3 @ 2,3
\text{two lines} @ \text{two lines}
1 - \sqrt{19}, 1 + \sqrt{19} @ 1 \pm \sqrt{19}
\$18.90 @ 18.90
18.9\text{ dollars} @ \$18.90
\frac{1}{2}mv^2 @ \frac{mv^2}{2}
v_{\mathrm{max}} = 3 @ 3
\text{E} @ E
3\text{ and }-3 @ \pm 3
(2,\infty) @ x>2
3 < x @ x > 3
0.5 @ 1:2
6.4 \times 10^{-3} \text{ mol L}^{-1} @ 6.4e-3
50.7\ \text{kJ/mol} @ 50.7
1.07 \times 10^{16}\ \text{s}^{-1} @ 1.07e16
0.8 \text{ or } 80\% @ 0.8
|2a|+1 @ 2|a|+1
\frac\pi2 @ \frac{\pi}{2}
\frac{\pi}2 @ \frac\pi{2}
\frac{270}7 @ \frac{270}{7}
54 gallons @ 54\text{ gallons}
18 right triangles @ 18
√{1−\zeta^{2}} @ \sqrt{1-\zeta^2}
12 gm @ 12 \text{ gm}
2X_d = 250 - 2.5P @ X_{d}=125-1.25 P
P = 100 - 0.8X_d @ X_{d}=125-1.25 P
125 - 1.25P @ X_{d}=125-1.25 P
\text{Area} = 5 \text{ cm}^2 @ 5
2x + 3 @ y = 2x + 3
\boxed{5} @ 5
x = 5 \text{ and } y = 3 @ x=5,y=3
x = 5, y = 3 @ (5,3)
n = 5 \pm \sqrt{2} @ 5+\sqrt2, 5-\sqrt2
\frac{-1 \pm \sqrt{5}}{2} @ \frac{-1+\sqrt5}{2}, \frac{-1-\sqrt5}{2}
1,234,567 @ 1234567
\frac{x+1}{2} @ 0.5x+0.5
0.5(x+1) @ \frac{x+1}{2}
\left\{ 1, 2, 3 \right\} @ 1,2,3
A = 3, B = 4 @ A=3,B=4
3.0 \times 10^8 \ \mathrm{m/s} @ 3e8
\text{yes} @ \text{Yes}
12\text{ p.m.} @ 12\text{ pm}
\log_2 8 @ 3
\sum_{i=1}^{3} i @ 6
\int_0^1 x dx @ \frac12
\mathbb{R} @ (-\infty,\infty)
(-\infty, \infty) @ \mathbb{R}
x=\frac{\pi}{4}+k\pi @ \frac{\pi}{4}+k\pi
e^{i\pi/3} @ \frac12+\frac{\sqrt3}{2}i
6:5 @ \frac65
|x-3| < 2 @ |x-3|<2
\sin^2 x @ 1-\cos^2 x
\tan x @ \frac{\sin x}{\cos x}
5 \text{ cm} @ 5 cm
5 = 5 @ 5
\ddot{x} + x = 0 @ x'' + x = 0
\frac{d^2x}{dt^2} = -x @ x''+x=0
0.1 M_\odot @ 0.1
x > 2 \text{ and } x < 3 @ (2,3)
x \le 7 \text{ and } x \ge -2 @ x \in [-2,7]
\{x : 1 < x < 2\} @ (1,2)
\{x \in \mathbb{R} \mid x \ne 3\} @ (-\infty,3)\cup(3,\infty)
\{2,1\} @ 1,2
m\,\frac{d}{dt}v+bv=f @ m \frac{d v}{d t}+b v=f
m\frac{\mathrm dv}{\mathrm dt}+bv=f @ m \frac{d v}{d t}+b v=f
m\frac{\mathrm{d}v}{\mathrm{d}t}+bv=f @ m \frac{d v}{d t}+b v=f
m\frac{d(v)}{dt}+bv=f @ m \frac{d v}{d t}+b v=f
m\frac{d\vec{v}}{dt} = \vec{f} @ m\dot{\vec{v}} = \vec{f}
\frac{d}{dt}x = kx @ x'=kx
\frac{d^2}{dt^2}x = -x @ x''=-x
\frac{d}{dt}(pq) + a = 0 @ a + \frac{d(pq)}{dt} = 0
\frac{d}{dx} x^3 @ 3x^2
\frac{d}{dt} 7 @ 0
m_pc^2 @ m_{p} c^{2}
k_BT @ k_{B} T
a_nx^n @ a_{n} x^{n}
e^{-\zeta\omega_nt} @ e^{-\zeta \omega_{n} t}
\rho_wgV @ \rho_{w} g V
2N_Ak_B @ 2 N_{A} k_{B}
v_max/2 @ \frac{v_{\max}}{2}
v_\text{max}/2 @ \frac{v_{max}}{2}
I\dot\omega + 2B\omega = T @ I \frac{d \omega}{d t}+2 B \omega=T
\ddot\theta + \theta = 0 @ \frac{d^2\theta}{dt^2}+\theta=0
y'' - y = 0 @ y^{\prime \prime}-y=0
x^{\prime\prime} @ x''
y^{\prime\prime}+y=0 @ \frac{d^2 y}{dt^2} + y = 0
x'(t) = kx(t) - a @ \frac{d x}{d t}=k x-a
m\frac{dv(t)}{dt} + bv(t) = f(t) @ m \frac{d v}{d t}+b v=f
\dot x = ax @ \dot{x}(t)=ax(t)
\frac{e^t}{3}+Ce^{-2t} @ \frac{e^{t}} {3}+c e^{-2 t}
C_1e^{x}+C_2e^{-x} @ c_{1} e^{x}+c_{2} e^{-x}
9, 4 @ AB=9, CD=4
CD=4, AB=9 @ AB=9, CD=4
9\text{ cm}, 4\text{ cm} @ AB=9, CD=4
5\text{ and }3 @ x=5, y=3
(5,3) @ x=5,y=3
\sqrt2, a+b @ p=\sqrt{2}, q=b+a
(4.6AF)_{16} @ 4.6AF_{16}
0.0011_2 @ 0.0011_{2}
5 \approx 5.0 @ 5
\frac{5}{9} \approx 0.6 @ \frac{5}{9}
\frac{\pi}{6} \approx 30^\circ @ \frac{\pi}{6}
\frac{v^2}{g} \approx 40 @ \frac{v^2}{g}
\frac{1}{8} \approx 12.5\% @ \frac18
\sin 40 \approx 0.643 @ \sin 40
3\sqrt{13}\text{ m} \approx 1082\text{ cm} @ 3\sqrt{13}
\frac13 \approx 0.333\ldots @ \frac13
\ln(2) \approx 0.693 @ \ln 2
x = \ln(2) = 0.693 @ \ln 2
\sin^{-1}(10/13) \approx 0.878 @ np.arcsin(10/13)
\arctan(2) \approx 1.107 @ \arctan 2
\log_2(3) \approx 1.585 @ \log_2 3
\frac{\ln 3}{\ln 2} \approx 1.585 @ \log_2 3
e^{2} \approx 7.39 @ e^2
e^{-1} \approx 0.368 @ \frac{1}{e}
\pi^{2} \approx 9.87 @ \pi^2
\pi/e \approx 1.156 @ \frac{\pi}{e}
\sqrt{\pi} \approx 1.77 @ \sqrt\pi
e = 0.5 @ 0.5
e^2 = 0.25 @ 0.25
\cos 30 = \frac{\sqrt3}{2} @ \frac{\sqrt{3}}{2}
\sin^{-1}(10/13) = 50.28^\circ @ 50.28
m\frac{d\vec{v}}{dt}+b\vec{v}=\vec{f} @ m \frac{d \vec{v}}{d t}+b \vec{v}=\vec{f}
m\frac{\text{d}v}{\text{d}t}+bv=f @ m\dot{v}+bv=f
\frac{d}{dt}(mv) = f @ \frac{d(mv)}{dt}=f
bv + \frac{d(mv)}{dt} = f @ \frac{d(mv)}{dt}+bv=f
0.0011 @ 0.0011_{2}
\ln(2) = 0.693 @ \ln 2
x = \ln(2) \approx 0.693 @ \ln 2
\ln 2 \approx 0.693 @ \ln 2
0 \le \theta \le \pi @ [0,\pi]
\theta \in [0,\pi] @ [0,\pi]
-2 \le \theta \le 7 @ \theta \in [-2,7]
\lambda > 3 @ (3,\infty)
x \in \{3, 5, 7\} @ 3,5,7
x \in \{3\} @ 3
x \ge -2, x \le 7 @ x \in [-2,7]
x \ne \pm 2 @ (-\infty,-2)\cup(-2, 2)\cup(2,\infty)
\omega_nt @ \omega_{n} t
(1 + sqrt(5))/2 @ \frac{1+\sqrt{5}}{2}
1 + sqrt(5) @ 1+\sqrt{5}
sqrt{51} @ \sqrt{51}
sqrt(2 + sqrt(3)) @ \sqrt{2+\sqrt{3}}
exp(-2t) @ e^{-2t}
ln(2) @ \ln 2
sin(x) @ \sin x
cos(2x) @ \cos 2x
sqrt(51) @ \sqrt{51}
3*sqrt(13) @ 3\sqrt{13}
0.\overline{3} @ \frac13
\varnothing @ \emptyset
*5* @ 5
10_000 @ 10000
5 \text{ Å} @ 5
5\,\mathrm{\mathring{A}} @ 5
5\,\mathrm{M}_\odot @ 5
5\,\text{M}_\odot @ 5
5\, M_\text{sun} @ 5
5\, M_{\text{sun}} @ 5
5\,\mathrm{k}\Omega @ 5
5^{\prime\prime} @ 5
300\,^\circ C @ 300
1.2 \text{ J}/(\text{mol}\cdot\text{K}) @ 1.2
\pm 1, \pm 2 @ -2,-1,1,2
0, \pm 2 @ -2,0,2
n! = 120 @ 120
\binom{n}{2} = 10 @ 10
x + \frac{1}{x} = 3 @ 3
x \equiv 3 \pmod{7} @ 3
9:00 \text{ a.m.} @ 9\text{ a.m.}
1 \text{ to } 2 @ 1:2
\frac{d}{dx} x^2 @ 2x
2x @ \frac{d}{dx}(x^2)
\frac{d}{dt}(mv) + bv = f @ f = bv + \frac{d}{dt}(mv)
\frac{d}{dt} 5 @ 0
m\frac{d\hat{v}}{dt}=f @ m\dot{\hat{v}}=f
m\dot{\vec v} = f @ m\frac{d\vec{v}}{dt}=f
J\dot\omega_n = T @ J\frac{d\omega_n}{dt}=T
y''' = y @ y^{\prime\prime\prime}=y
\dot{x}(t)=ax(t) @ \dot x = ax
C e^{3x} + x @ x + ce^{3x}
2E_kinc @ 2 c E_{kin}
\frac{p_0V}{RT} @ \frac{p_{0} V}{R T}
N_Ak_B @ N_{A} k_{B}
\log 2 \approx 0.301 @ \log 2
\sqrt[3]{2} \approx 1.26 @ \sqrt[3]{2}
5, 3 @ x=5,y=3
\frac12, 3 @ x=\frac{1}{2}, y=3
9 cm, 4 cm @ AB=9, CD=4
\ln 3 - \ln 2 \approx 0.405 @ \ln\frac32
1.2 \times 10^3 \approx 1200 @ 1200
a\sqrt\pi @ \sqrt{\pi} a
\phi < 2 \text{ or } \phi > 3 @ (-\infty,2)\cup(3,\infty)
\alpha \ge 2 @ [2,\infty)
\{3, 5\} @ x \in \{3,5\}
3, 5 @ x \in \{3,5\}
x \in \{ 5, 3 \} @ x \in \{3,5\}
x \le 7, x \ge -2 @ [-2,7]
x < -2, x > 7 @ (-\infty,-2)\cup(7,\infty)
x \ne 2, -2 @ (-\infty,-2)\cup(-2, 2)\cup(2,\infty)
x \ne -2 \text{ and } x \ne 2 @ (-\infty,-2)\cup(-2, 2)\cup(2,\infty)
x \ne \pm\sqrt{2} @ (-\infty,-\sqrt2)\cup(-\sqrt{2}, \sqrt2)\cup(\sqrt2,\infty)
\theta \in \left[0, \frac{\pi}{2}\right) @ 0 \le \theta < \frac{\pi}{2}
\{ \theta : 0 < \theta < 1\} @ (0,1)
2sqrt(3)/3 @ \frac{2\sqrt{3}}{3}
(0, sqrt(2)] @ (0,\sqrt{2}]
[-sqrt(2), sqrt(2)) @ [-\sqrt2,\sqrt2)
sqrt(x^2 + (y-1)^2) @ \sqrt{x^2+(y-1)^2}
sin x cos x @ \sin x \cos x
exp(-t/2) sin(3t) @ e^{-t/2}\sin 3t
\mathrm{ln}(2) @ \ln 2
\text{sin}(x) @ \sin x
sin^2(x) @ \sin^2 x
log_2(3) @ \log_2 3
arctan(x/2) @ \arctan\frac{x}{2}
sqrt 5 @ \sqrt{5}
0.1\overline{6} @ \frac16
-2.\overline{3} @ -\frac{7}{3}
0.\overline{142857} @ \frac17
0.\overline{3} @ 0.\overline{3}
1_000_000 @ 1000000
\{\} @ \emptyset
\emptyset @ \varnothing
*x+1* @ x+1
-2, -1, 1, 2 @ \pm 1, \pm 2
x = \pm 1, x = \pm 2 @ -2,-1,1,2
x = 0, \pm 2 @ -2,0,2
\pm 1, \pm 2 @ \pm 2, \pm 1
\pm 1, \pm 2, 0 @ 0, 1, -1, 2, -2
\pm\sqrt{2}, \pm i @ i, -i, \sqrt2, -\sqrt2
x^2 + \frac{1}{x^2} = 7 @ 7
\frac{1}{a} + \frac{1}{b} = 2 @ 2
\binom{n}{k} = 35 @ 35
x ≡ 3 (mod 7) @ 3
x \equiv 3 \ (\text{mod } 7) @ 3
n \equiv 12 \mod{35} @ 12
x \equiv 3 \pmod{7} @ x \equiv 3 \pmod 7
9 a.m. @ 9:00 \text{ a.m.}
9\text{ am} @ 9:00\text{ a.m.}
9:00 @ 9:00\text{ am}
9 \text{ a.m.} @ 9
3 to 4 @ 3:4
1:2 @ 1 \text{ to } 2
x = \pm 1, x = \pm 2 @ \pm 1, \pm 2
5\ \text{Å} @ 5
5 Å @ 5
5\,\text{Å} @ 5\text{ angstroms}
5\,R_{\text{earth}} @ 5
5\,\mathrm{L}_{\odot} @ 5
5\ \text{M}\Omega @ 5
5 k\Omega @ 5
300^\circ\text{C} @ 300
300 ^\circ\mathrm{C} @ 300
25^\circ C @ 25^\circ\text{C}
25^\circ C @ 25^\circ
50.7\text{ kJ}/(\text{mol K}) @ 50.7
3.2\,\text{J}/(\text{kg}\cdot\text{K}) @ 3.2
5 \text{ W}/(\text{m}^2 \cdot \text{K}) @ 5
5 \text{ m/s} @ 5
3 \pmod{7} @ 3
8.314 J/(mol K) @ 8.314
2\sqrt(x+1) @ 2\sqrt{x+1}
np.sqrt(2*np.sqrt(3)) @ \sqrt{2\sqrt{3}}
x^3+\frac{1}{x^3} = 18 @ 18
x \ne 0, 1 @ (-\infty,0)\cup(0,1)\cup(1,\infty)
""".strip("\n").splitlines()

WRONG = r"""
148.5e @ 4.5e33
4.5 \times 10^{32} @ 4.5e33
4.5 \times 10^{33} @ 4.6e33
6.68\times10^{-5} @ .0000672
\frac{1}{15000} @ .0000672
2\times10^{-19} @ 1\times10^{-19}
\sqrt{2}\times10^{-19} @ 1\times10^{-19}
E=2\times10^{-19} @ 1e-19
(2, 2e-9) @ (2,1e-9)
0.333 @ \frac{1}{3}
\frac{999999}{1000000} @ 1
0.999999 @ 1
3.14 @ \pi
52_9 @ 52_8
57_8 @ 52_9
5 km @ 5 m
5\text{ km} @ 5\text{ m}
5\text{ cm}^2 @ 5\text{ cm}^3
5\text{ m/s} @ 5\text{ m}
10:00\text{ am} @ 10:00\text{ pm}
5 @ 5m
\frac{1}{m} @ \frac{1}{m} t
\frac{1}{\sqrt{2}} @ \frac{1}{\sqrt{2}}c
\frac{37}{4} @ \frac{37}{4} m
3 @ 3+2\text{i}
5\text{ million} @ 5
50\text{ percent} @ 50
2 3 @ 23
2 1/3 @ \frac{2}{3}
-2 1/3 @ -\frac{5}{3}
\sqrt 13 @ \sqrt{1}3
E_1, E_2 @ E_{1},E_{3}
3 @ \pm 3
3 @ 3,-3
\text{North} @ \text{east}
\text{west} @ \text{east}
ABC @ abc
f \text{ is even} @ f \text{ is odd}
f @ f \text{ is odd}
x\text{ or }y @ x\text{ or }z
7 \text{ or } 8 @ 7
1.5\% @ 1.5
\frac{1}{2}\% @ \frac12
E_1 @ E_2
2x @ 2\times10^{0}
k=5 @ n=5
\frac{1}{0} @ 0
2x=7 @ 27
2x=7 @ \frac72
1+n=3 @ 4
1+n=3 @ 3
-x = 5 @ 5
5x - 7y + 11z + 4 = 0 @ 0
2x+3y=6 @ 6
x-5=0 @ 0
x = \frac{10}{2} = 6 @ 6
3\sqrt{13} \approx 10.82 @ 10.83
3\sqrt{13} \approx 12.82 @ 12.82
\frac{1}{3} = 0.4 @ 0.4
12\ \mu\text{m} @ 12\text{ m}
\frac{dx}{dt}=a-kx @ \frac{d x}{d t}=k x-a
\frac{dx}{dt}=kx+a @ \frac{d x}{d t}=k x-a
\hbar\omega(v+\frac12)+\frac{E_0^2 e^2}{2m\omega^2} @ \hbar \omega(v+1 / 2)-\frac{E_{0}^{2} e^{2}}{2 m \omega^{2}}
MR = LRMC @ MR=SRMC
\frac{\lambda_{blue}}{\sqrt{2}} @ \lambda_{\text {red}} / \sqrt{2}
\frac{(1+i)e^{2it}}{4} @ \frac{e^{2 i t}}{(2+2 i)}
bv=f @ m \frac{d v}{d t}+b v=f
m\frac{dv}{dt}-bv=f @ m \frac{d v}{d t}+b v=f
x \in [0,1] @ x \in [-2,7]
-2 < x \le 7 @ x \in [-2,7]
x \in (-2,7] @ x \in [-2,7]
x \in \mathbb{R} @ x \in [-2,7]
(-2,1) @ -2,1
-2,1 @ (-2,1)
1:00 @ 12:00
1:03 \text{ a.m.} @ \text{1:03 PM}
(53)_8 @ 52_8
3, 5, and 8 @ 3, 5, 7
x = 1 \text{ or } y = -3 @ 1,-2
x \le 2 @ (-\infty,2)
3,105,210 @ 3, 105, 21
81256 @ 81, 256
81, 256 @ 81256
200, 101 @ 100, 200
50\% @ 50
x @ |x|
x+1 @ |x|+1
f(x+1) @ f(x)+1
5x - 7y + 11z - 4 = 0 @ 5x - 7y + 11z + 4 = 0
x^2 = 5x @ x=5
x=5 @ x^2=5x
\frac10 @ \frac20
\emptyset @ 0
m_{1} @ m_2
3 > x @ x > 3
y @ |y|
2a+1 @ |2a|+1
\frac{dM}{dt}=\frac{10^{5} L_{\odot}}{0.007 c^{2} M_{\odot}^{6}} M^{6} @ SRMC=LRMC
\frac{dM}{dt}=5 @ SRMC=LRMC
a=b @ SRMC=LRMC
MR=LRMC @ SRMC=LRMC
5 dozen @ 5
7 or 8 @ 7
3 \sin x @ 3
P = 100 + 0.8X_d @ X_{d}=125-1.25 P
A = 4, B = 3 @ A=3,B=4
x=3 @ x=-3
x>3 @ x\ge 3
3,4 @ 3,4,5
k\pi @ \pi
\text{Monday} @ \text{Tuesday}
C @ \text{(D)}
i @ 1
2i @ 2
e^{-i\pi/3} @ \frac12+\frac{\sqrt3}{2}i
12:05 @ \frac{12}{5}
\{1\} @ 2
x_1 @ x_2
5x @ 5
5 x @ 5
5 m @ 5 s
3 \text{ or } 5 @ 3
3 \text{ and } 5 @ 5
\text{no solution} @ 0
x=1,2 @ 2
1 @ 1,2
5 = 5 @ 6
4 = 5 @ 5
4 \approx 5 @ 5
1 \approx 2 \approx 3 @ 3
2 \approx 3 @ 3
x + 1 @ x
a^2 = b^2 @ a=b
y = 3x @ y = 2x + 3
y = -2x @ y = 2x
2y = 3x + 3 @ y = 2x+3
z = 2x+3 @ y=2x+3
\frac{dx}{dt} = kx @ \frac{dy}{dt}=ky
\frac{dy}{dx} = y @ \frac{dy}{dt}=y
x'' + x = 0 @ x' + x = 0
\frac{d^2x}{dt^2} = x @ x''+x=0
[0,1] @ [0,1)
x \ge 0 @ x > 0
x \ge 0 @ (0,\infty)
x<2 \text{ and } x>3 @ (2,3)
(-\infty,2) @ (-\infty,2)\cup(3,\infty)
50 @ 50\%
\mu m @ m
3\Omega @ 3\Omega_0
10,00 @ 1000
\sqrt{5}1 @ \sqrt{51}
1 000 @ 1,0
100 200 @ 300
c/2 @ \frac12
v_1 @ v_2
f'(x) @ f(x)
L_1 @ L_2
M_\odot @ L_\odot
e @ 2.7
12:30\text{ pm} @ 12:03\text{ pm}
\{1,2\} @ (1,2)
m+n=5 @ 204
\text{odd} @ \text{even}
2^5 = 33 @ 33
10\% @ 10
x > 2 \text{ or } x < 3 @ (2,3)
(1,2) @ \{1,2\}
bv=f @ m\frac{d}{dt}v+bv=f
bv=f @ m\frac{d(v)}{dt}+bv=f
bv=f @ \frac{d(mv)}{dt}+bv=f
m\frac{d}{dt}v+bv=f @ bv=f
\frac{d(mv)}{dt}+bv=f @ bv=f
\frac{d\vec{v}}{dt}=0 @ \frac{d\vec{u}}{dt}=0
\frac{d}{dt}(pq) + a = 0 @ \frac{d}{dt}(pr) + a = 0
\frac{d}{dt}(pq) + a = 0 @ \frac{d}{dx}(pq) + a = 0
\frac{\partial (uv)}{\partial x}+w=f @ w=f
\frac{d}{dt}v^2 + v = f @ v=f
\frac{d}{dt}v @ 0
0 @ \frac{d(mv)}{dt}
m_pc^2 @ m_{e} c^{2}
m_pc^2 @ m_{c} p^{2}
v_max @ v_{min}
y'' - y = 0 @ y^{\prime}-y=0
y''-y=0 @ y^{\prime\prime\prime}-y=0
\ddot\theta + \theta = 0 @ \frac{d\theta}{dt}+\theta=0
\ddot\theta + \theta = 0 @ \frac{d^2\phi}{dt^2}+\phi=0
x'(t) = kx(t) + a @ \frac{d x}{d t}=k x-a
x'(t) = kx(t) - a @ \frac{dx}{dt} = kxt-a
mC^2 @ mc^2
a+b+C @ a+b+c
C\cos A @ c \cos A
Ce^{2t} + c @ ce^{2t}+C
C_1e^{x}+C_2e^{-x} @ c_{2} e^{x}+c_{1} e^{-x}
4, 9 @ AB=9, CD=4
9, 5 @ AB=9, CD=4
9, 4, 1 @ AB=9, CD=4
3\text{ and }5 @ x=5,y=3
(3,5) @ x=5,y=3
q, p @ a=p, b=q
0.0011_3 @ 0.0011_{2}
0.0012_2 @ 0.0011_{2}
3\sqrt{13} \approx 99 @ 3\sqrt{13}
2\pi \approx 3.14 @ 2\pi
5 \approx 9 @ 5
\frac{5}{9} \approx 0.7 @ \frac{5}{9}
\ln(2) \approx 0.9 @ \ln 2
\ln(3) \approx 0.693 @ \ln 2
\ln(3) \approx 1.0986 @ \ln 2
x = \pi^2 \approx 3.14 @ \pi^2
e^{2} \approx 7.39 @ e^3
\arctan(2) = 1.5 @ \arctan 2
\frac{d}{dt}x = 0 @ \frac{d}{dt}y = 0
\frac{d}{dt}(mv)=f @ \frac{d}{dt}(mu)=f
\frac{d(v)}{dt}+bv=f @ \frac{d(u)}{dt}+bv=f
\frac{d^3 (x)}{dt^3}+bv=f @ bv=f
d(v)/dt + bv=f @ bv=f
\frac{\partial (uv)}{\partial x}+bv=f @ bv=f
bv=f @ \frac{\delta v}{\delta t} + bv=f
\nabla v + bv=f @ bv=f
\frac{dv}{dt} @ 0
0 @ \frac{dv}{dt}
\frac{d(mv)}{dt} @ 0
\frac{dL}{d\theta} @ 0
\frac{d\mathbf{v}}{dt} = 0 @ \frac{d\mathbf{u}}{dt}=0
\frac{d}{dt}(mv) + bv = f @ \frac{d}{dt}(mu) + bv=f
\frac{d}{dt}(mv) - bv = f @ \frac{d}{dt}(mv) + bv=f
\frac{d}{dt}(mv) + bv = f @ \frac{d}{dx}(mv) + bv=f
y^{\prime\prime} @ y^{\prime}
x'(t) = kx(t) + a @ \frac{dx}{dt} = kx-a
x'(s) = kx(t) - a @ \frac{dx}{dt} = kxt-a
f(t) @ f
C e^{2t} + c @ ce^{2t}+C
2C e^{2t} @ ce^{2t}
k_BT @ k_{T} B
\frac{d\vec{v}}{dt}+v=0 @ \frac{d\vec{u}}{dt}+v=0
\frac{dv}{dt}=0 @ v=0
\frac{d}{dt}v\cdot u + v = f @ v=f
\frac{d}{dt}\left(\frac{\partial L}{\partial \dot{q}}\right) - q = 0 @ q=0
3, 5 @ x=5,y=3
(9,4) @ AB=8,CD=3
3, \frac12 @ x=\frac{1}{2}, y=3
0 \le \theta < \pi @ [0,\pi]
\lambda > 3 @ \mu > 3
\lambda > 3 @ [3,\infty)
\theta \in [0,\pi] @ [0,2\pi]
x \in \{3, 5\} @ 3,5,7
x \in \{3\} @ 5
x \in \{3, 5\} @ (3,5)
x \in (3, 5) @ 3,5
x \ge -2, x \le 7 @ (-\infty,\infty)
x \ge -2, y \le 7 @ [-2,7]
x \ge -2, x \le 7 @ (-2,7)
x \ge 7, x \le -2 @ [-2,7]
x \ne -2, x \ne 2 @ x \ne 1, x \ne 3
x \ne \pm 2 @ (-\infty,2)\cup(2,\infty)
x \ne \pm 2 @ (-2,2)
sqrt(2 + sqrt(3)) @ \sqrt{2}+\sqrt{3}
sqrt(5) + 1 @ \sqrt{5+1}
sin(x) @ \cos x
exp(-2t) @ e^{2t}
ln(2) @ \ln 3
log(2) @ \ln 3
0.\overline{3} @ \frac{3}{10}
0.1\overline{6} @ \frac{16}{99}
0.\overline{6} @ \frac13
10_000 @ 1000
10_2 @ 102
\varnothing @ 0
\{\} @ 0
\pm 1, \pm 2 @ -2,-1,1,3
\pm 1, 2 @ -2,-1,1,2
0, \pm 2 @ 0,2
\pm 1, \pm 2 @ 1,2
n! = 120 @ 5
\frac{1}{x} = 3 @ 3
x + \frac{1}{y} = 3 @ 3
2n! + 1 = 120 @ 120
\binom{5}{2} = 11 @ 11
5! = 121 @ 121
x \equiv 4 \pmod{7} @ 3
2x \equiv 3 \pmod{7} @ 3
x \equiv 3 \pmod{7} @ x \equiv 3 \pmod{8}
9:00 \text{ a.m.} @ 9\text{ p.m.}
9:30 \text{ a.m.} @ 9\text{ a.m.}
9:00 @ 9
1 \text{ to } 3 @ 1:2
1 \text{ to } 2 @ 12
2 \text{ to } 1 @ 1:2
6 \text{ Å} @ 5
5\,M_{1} @ 5 M_{2}
6\,M_\text{sun} @ 5
5\,\mathrm{k}\Omega @ 6
300^\circ C @ 300^\circ F
301\,^\circ C @ 300
5\text{ J}/(\text{mol}) @ 5\text{ J}
5 \text{ m}/(\text{s}) @ 5\text{ s}/(\text{m})
5/(x) @ 5
M_\text{sun} @ 5
x \text{ J}/(y) @ x
5k @ 5
12 \bmod 5 @ 12
4 \pmod{7} @ 3
2\sqrt(x)+1 @ 2\sqrt{x+1}
\frac{1}{x} + 1 = 3 @ 2
""".strip("\n").splitlines()


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with MathGrader() as grader:
        yield grader


def verdict(grader: MathGrader, line: str) -> bool:
    answer, gold = line.rsplit(" @ ", 1)
    (grade,) = grader.grade([f"So it is \\boxed{{{answer}}}."], [gold])
    assert grade.formatted and grade.error is None
    return grade.correct


@pytest.mark.parametrize("line", RIGHT)
def test_the_same_in_another_writing(line: str, grader: MathGrader) -> None:
    assert verdict(grader, line)


@pytest.mark.parametrize("line", WRONG)
def test_another_answer_that_looks_alike(line: str, grader: MathGrader) -> None:
    assert not verdict(grader, line)


def test_numbers_are_settled_here() -> None:
    """No process is asked, and the comparison is exact, whatever the size."""
    assert quick_verdict(r"4.5 \times 10^{33} \text{ erg}", "4.5e33") is True
    assert quick_verdict(r"4.5 \times 10^{33}", "4.5000000000000000001e33") is False
    assert quick_verdict("1e-300", "2e-300") is False
    assert quick_verdict("x+1", "1+x") is None


@pytest.mark.parametrize(
    ("answer", "gold", "question", "right"),
    [
        (r"10\%", "10", "What percent of the balls are red?", True),
        (r"10\text{ percent}", "10", "Find the percentage of red balls.", True),
        ("10 percent", "10", "What is the probability, to the nearest percent?", True),
        ("10%", "10", "By what percent did it grow?", True),
        (r"x = 12.5\%", "12.5", "Express it as a percent.", True),
        (r"10\%", "10", "How many balls are red?", False),
        (r"10\%", "10", "10 percent of the balls are red. How many are blue?", False),
        (r"11\%", "10", "What percent of the balls are red?", False),
        (r"10\%", r"10\%", "What percent of the balls are red?", True),
        ("20", r"20\%", "What percent of the balls are red?", True),
        ("20", r"20\text{ percent}", "By what percent did it grow?", True),
        ("0.2", r"20\%", "What percent of the balls are red?", True),
        ("21", r"20\%", "What percent of the balls are red?", False),
        ("20", r"20\%", "How many balls are red?", False),
        (r"10\%", "10", "How many more dollars is 10 percent of 100?", False),
        (r"10\%", "10", "What is 10 percent of 100?", False),
        (r"10\%", "10", "Ten percent of what number is 1?", False),
        (r"10\%", "10", "If it grows by 5 percent a year, after how many years has it doubled?", False),
        (r"10\%", "10", "How many girls are there if the percentage of boys is the same?", False),
        (r"10\%", "10", "How many percent of 50 is 5?", True),
        (r"10\%", "10", "What percent of 50 is 5 percent of 100?", True),
        (r"10\%", "10", "Calculate the percentage of boys.", True),
        (r"10\%", "10", "Determine the total percentage gain.", True),
        (r"10\%", "10", "Calculate the price of a coat after a 10 percent discount.", False),
        (r"10\%", "10", r"If $x\%$ of 50 is 5, what is $x$?", True),
        (r"10\%", "10", "If $p$ percent of 50 is 5, find $p$.", True),
        (r"10\%", "10", r"If $x\%$ of $n$ is 5, what is $n$?", False),
        (r"10\%", "10", r"If $x\%$ of 50 is 5, what is $x+2$?", False),
    ],
)
def test_percent_where_the_question_asks_for_it(
    answer: str, gold: str, question: str, right: bool, grader: MathGrader
) -> None:
    (grade,) = grader.grade([f"\\boxed{{{answer}}}"], [gold], [question])
    assert grade.correct == right and grade.extracted == answer


@pytest.mark.parametrize(
    ("completion", "gold", "right"),
    [
        (r"They are $\boxed{1}$ and $\boxed{-2}$.", "1,-2", True),
        (r"$x=\boxed{-2}$ or $x=\boxed{1}$", "1,-2", True),
        (r"\boxed{3}, \boxed{5}, and \boxed{7}", "3, 5, 7", True),
        (r"\boxed{1+\sqrt{19}} and \boxed{1-\sqrt{19}}", r"1 \pm \sqrt{19}", True),
        ("First \\boxed{1}.\n\nThen \\boxed{-2}.", "1,-2", False),
        (r"\boxed{1}, or rather \boxed{1}, and \boxed{-2}", "1,-2", False),
        (r"They are \boxed{1} and \boxed{-3}.", "1,-2", False),
        (r"They are \boxed{1} and \boxed{2}.", "2", True),
        (r"They are \boxed{1} and \boxed{2}.", "12", False),
        (r"\boxed{5} and then \boxed{1,-2}", "1,-2", True),
        (r"\boxed{3} and \boxed{5}", r"\{3,5\}", True),
        (r"\boxed{5}, \boxed{3}", r"\{3,5\}", True),
        ("$$\\boxed{3}$$\n\nand\n\n$$\\boxed{5}$$", "3,5", True),
        ("1. $\\boxed{3}$\n2. $\\boxed{5}$", "3,5", True),
        ("- \\boxed{3}\n- \\boxed{5}", "3,5", True),
        ("1) \\[\\boxed{3}\\]\n\n2) \\[\\boxed{5}\\]", "3,5", True),
        (r"$\boxed{\pm 1}$ and $\boxed{\pm 2}$", r"\pm 1, \pm 2", True),
        (r"\boxed{3} and \boxed{7}", r"\{3,5\}", False),
        ("\\boxed{3}\n\nWait.\n\n\\boxed{5}", "3,5", False),
        ("\\boxed{3}\n\n\\boxed{5}", "3,5", False),
    ],
)
def test_several_boxes_are_a_list_where_the_gold_answer_is_one(
    completion: str, gold: str, right: bool, grader: MathGrader
) -> None:
    assert grader.grade([completion], [gold])[0].correct == right


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ("3/4", Fraction(3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        ("0.75", Fraction(3, 4)),
        (r"7.5 \times 10^{-1}", Fraction(3, 4)),
        (r"0.75\text{ m}", Fraction(3, 4)),
        (r"\text{North} ", "North"),
        (r"2x + 1", "2x+1"),
        ("81, 256", "81,256"),
        ("81,256", 81256),
        (r"0.\overline{3}", Fraction(1, 3)),
        ("10_000", 10000),
        ("sqrt(2)/2", r"\sqrt{2}/2"),
        ("x" * 2000 + " y", "x" * 2000 + "y"),
    ],
)
def test_what_a_vote_counts(answer: str, key: object) -> None:
    assert answer_key(answer) == key


@pytest.mark.parametrize(
    "unit",
    [
        "m ",
        "cm ",
        "cm/",
        r"\text{cm}",
        r"\mathrm{ cm",
        "1",
        "1,",
        "10^{",
        r"\times10^",
        r"\pm",
        "( ",
        "/s ",
        "{",
        "\\",
        "=",
        "x=",
        "a+",
        r"\approx",
        "<",
        "x<1,",
        r"\text{ or }",
        "and ",
        r"\mu",
        r"\frac{",
        r"\frac{dx}{d",
        r"\frac{d}{dt}",
        r"\frac{d(x)}{dt}",
        r"\vec{",
        "_ab",
        "sqrt(",
        "sqrt(2)",
        r"0.\overline{3}",
        "10_000",
        r"\text{ J}/(",
        r"\ne ",
        r"x\ne 2,",
        r"\pm 1,",
        r"\equiv ",
        r"\mod",
        r"\binom{n}{2}",
        r"\frac{1}{x}+",
        "ce^",
        "^{\\prime",
        r"\prime",
        r"M_\odot",
        "x_",
        "x_{",
        "x'",
        "1 000",
        "√",
        "**",
        "⁰₁",
        r"\{x|",
        r"\over",
        "[",
        ":",
        ",",
        ". ",
    ],
)
def test_reading_takes_no_time(unit: str) -> None:
    started = time.process_time()
    for prefix in ("", "5 ", r"\frac{1}{2} "):
        text = (prefix + unit * 1000)[:1000]
        quick_verdict(text, "5")
        for_math_verify(text, "5 m")
        answer_key(text)
    assert time.process_time() - started < 2
