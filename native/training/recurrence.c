#include "training/recurrence.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "system/portable.h"

enum { TILE = 64 }; // channels that one pass along the tokens carries in registers and first-level cache

#define REAL float
#define SUFFIX f32
#define EXP qslm_expf
#include "training/recurrence_body.h"
#undef REAL
#undef SUFFIX
#undef EXP

#define REAL double
#define SUFFIX f64
#define EXP exp
#include "training/recurrence_body.h"
