/* Messages for people. The library prints nothing by itself: they go to a sink that the front sets;
 * without one, warnings go to stderr when KGEN_LOG is set. Thread-safe. */
#ifndef KG_BASE_LOG_H
#define KG_BASE_LOG_H

typedef enum kg_log_level { KG_LOG_DEBUG, KG_LOG_INFO, KG_LOG_WARNING, KG_LOG_ERROR } kg_log_level;
typedef void (*kg_log_sink)(void *ctx, kg_log_level level, const char *message);

void kg_log_set_sink(kg_log_sink sink, void *ctx);
void kg_log(kg_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same message (after formatting) is given once a process. */
void kg_log_once(kg_log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
