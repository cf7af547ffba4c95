/* Looks whether an endpoint is there before anything costly depends on it. Says nothing of the key
 * or the model: only a request that costs does, and servers differ in what else they answer. */
#include "base/stop.h"
#include "sys/proc.h"
#include "tune/llm_outcome.h"

/* Of a server that took the connection and is busy; that it is there is known by then. */
#define ANSWER_MS 2000
#define SLICE_MS 100

static bool enough(void *ctx, const char *bytes, size_t n) {
    (void)ctx, (void)bytes, (void)n;
    return false;
}

static int get(kg_http *http, const kg_llm_options *o, kg_http_result *r, kg_error *err) {
    kg_http_request request = {.url = o->url,
                               .connect_ms = o->connect_ms,
                               .first_byte_ms = ANSWER_MS,
                               .total_ms = o->connect_ms + ANSWER_MS,
                               .on_data = enough};
    int rc = kg_http_start(http, &request, err);
    while (!rc && !kg_http_step(http, r)) {
        if (kg_stop_wanted())
            return kg_fail(err, KG_EINTR, "interrupted");
        kg_http_sleep(http, SLICE_MS);
    }
    return rc;
}

static int verdict(const kg_llm_options *o, const kg_http_result *r, kg_error *err) {
    kg_llm_stream nothing;
    kg_llm_dialect dialect;
    kg_llm_outcome out;
    if (r->failure == KG_HTTP_OK || r->status > 0)
        return KG_OK;
    kg_llm_stream_init(&nothing);
    kg_llm_dialect_begin(o, &dialect);
    kg_llm_judge(o, r, &nothing, false, &dialect, &out);
    kg_llm_stream_free(&nothing);
    if (out.end != KG_LLM_FATAL)
        return KG_OK; /* it took the request, and what it makes of others will show */
    return kg_fail(err, out.unreachable ? KG_EENV : KG_EINVAL, "%s", out.message);
}

int kg_llm_reach(const kg_llm_options *o, kg_error *err) {
    kg_http_options options = {.proxy = o->proxy, .ca_file = o->ca_file};
    kg_http *http = NULL;
    kg_http_result r;
    int rc = kg_http_open(&options, &http, err);
    if (rc)
        return rc;
    /* Once more: a name server that was slow, a connection that was lost. */
    for (int i = 0; i < 2; i++) {
        rc = get(http, o, &r, err);
        if (!rc)
            rc = verdict(o, &r, err);
        if (rc != KG_EENV)
            break;
    }
    kg_http_close(http);
    return rc;
}
