#ifndef QSLM_PACKING_H
#define QSLM_PACKING_H
typedef int qslm_packing_placeholder;
#endif
