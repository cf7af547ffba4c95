/* The closed list of answers to a Candidate (docs/formats.md, "Record"). A verdict is data: that
 * the judge itself failed is a status (base/error.h). */
#ifndef KG_TUNE_VERDICT_H
#define KG_TUNE_VERDICT_H

/* X(NAME, text). Numbers are not in files; names are. */
#define KG_VERDICTS(X)                                                                             \
    X(PASS, "pass")                                                                                \
    X(COMPILE_ERROR, "compile_error")                                                              \
    X(PLAN_ERROR, "plan_error")                                                                    \
    X(LAUNCH_ERROR, "launch_error")                                                                \
    X(OUT_OF_RESOURCES, "out_of_resources")                                                        \
    X(TIMEOUT, "timeout")                                                                          \
    X(CRASH, "crash")                                                                              \
    X(ILLEGAL_ACCESS, "illegal_access")                                                            \
    X(WRONG_SHAPE_OR_DTYPE, "wrong_shape_or_dtype")                                                \
    X(NONFINITE, "nonfinite")                                                                      \
    X(WRONG_VALUES, "wrong_values")                                                                \
    X(NOT_ALL_WRITTEN, "not_all_written")                                                          \
    X(INPUT_MODIFIED, "input_modified")                                                            \
    X(OUT_OF_BOUNDS, "out_of_bounds")                                                              \
    X(NONDETERMINISTIC, "nondeterministic")                                                        \
    X(TOO_SLOW, "too_slow")                                                                        \
    X(IMPLAUSIBLE, "implausible")                                                                  \
    X(POLICY, "policy")

typedef enum kg_verdict {
#define KG_X(NAME, text) KG_VERDICT_##NAME,
    KG_VERDICTS(KG_X)
#undef KG_X
        KG_VERDICT_COUNT
} kg_verdict;

const char *kg_verdict_name(int verdict); /* NULL for a number that is none */
int kg_verdict_parse(const char *name);   /* the number, or -1 */

#endif
