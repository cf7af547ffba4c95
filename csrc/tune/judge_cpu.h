/* Between the files of the CPU's side of the judge. */
#ifndef KG_TUNE_JUDGE_CPU_H
#define KG_TUNE_JUDGE_CPU_H

#include "tune/judge_internal.h"

/* judge_cpu_time.c: judge_device.h's time. */
int kg_cpu_time(kg_bench *b, bool *ok, kg_error *err);

#endif
