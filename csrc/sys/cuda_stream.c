/* The driver's streams, events and graphs. */
#include "sys/cuda.h"
#include "sys/cuda_internal.h"

int kg_cuda_stream_create(kg_cu_stream *out, kg_error *err) {
    kg_cu_stream s = NULL;
    int rc = KG_CU_CALL(cuStreamCreate, "", (&s, KG_CU_STREAM_NON_BLOCKING), err);
    if (rc == KG_OK)
        *out = s;
    return rc;
}

void kg_cuda_stream_destroy(kg_cu_stream s) {
    if (s != NULL)
        (void)kg_cu.cuStreamDestroy_v2(s);
}

int kg_cuda_stream_synchronize(kg_cu_stream s, kg_error *err) {
    return KG_CU_CALL(cuStreamSynchronize, "", (s), err);
}

/* "Not ready" is an answer here, and no failure. */
static int done_or(int result, const char *call, bool *done, kg_error *err) {
    int rc = result == KG_CU_NOT_READY ? KG_OK : kg_cuda_check(result, call, "", err);
    if (rc == KG_OK)
        *done = result == KG_CU_SUCCESS;
    return rc;
}

int kg_cuda_stream_done(kg_cu_stream s, bool *done, kg_error *err) {
    return done_or(kg_cu.cuStreamQuery(s), "cuStreamQuery", done, err);
}

int kg_cuda_stream_wait(kg_cu_stream s, kg_cu_event e, kg_error *err) {
    return KG_CU_CALL(cuStreamWaitEvent, "", (s, e, 0), err);
}

int kg_cuda_stream_capturing(kg_cu_stream s, bool *yes, kg_error *err) {
    int status = KG_CU_CAPTURE_STATUS_NONE;
    int rc = KG_CU_CALL(cuStreamIsCapturing, "", (s, &status), err);
    if (rc == KG_OK)
        *yes = status != KG_CU_CAPTURE_STATUS_NONE;
    return rc;
}

int kg_cuda_event_create(bool timing, kg_cu_event *out, kg_error *err) {
    kg_cu_event e = NULL;
    int rc = KG_CU_CALL(cuEventCreate, "", (&e, timing ? 0 : KG_CU_EVENT_DISABLE_TIMING), err);
    if (rc == KG_OK)
        *out = e;
    return rc;
}

void kg_cuda_event_destroy(kg_cu_event e) {
    if (e != NULL)
        (void)kg_cu.cuEventDestroy_v2(e);
}

int kg_cuda_event_record(kg_cu_event e, kg_cu_stream s, kg_error *err) {
    return KG_CU_CALL(cuEventRecord, "", (e, s), err);
}

int kg_cuda_event_synchronize(kg_cu_event e, kg_error *err) {
    return KG_CU_CALL(cuEventSynchronize, "", (e), err);
}

int kg_cuda_event_done(kg_cu_event e, bool *done, kg_error *err) {
    return done_or(kg_cu.cuEventQuery(e), "cuEventQuery", done, err);
}

int kg_cuda_event_elapsed(kg_cu_event from, kg_cu_event to, float *ms, kg_error *err) {
    float value = 0;
    int rc = KG_CU_CALL(cuEventElapsedTime, "", (&value, from, to), err);
    if (rc == KG_OK)
        *ms = value;
    return rc;
}

int kg_cuda_capture_relax(int *before, kg_error *err) {
    int mode = KG_CU_CAPTURE_MODE_RELAXED;
    int rc = KG_CU_CALL(cuThreadExchangeStreamCaptureMode, "", (&mode), err);
    if (rc == KG_OK)
        *before = mode;
    return rc;
}

void kg_cuda_capture_restore(int before) {
    (void)kg_cu.cuThreadExchangeStreamCaptureMode(&before);
}

int kg_cuda_capture_begin(kg_cu_stream s, kg_error *err) {
    return KG_CU_CALL(cuStreamBeginCapture_v2, "", (s, KG_CU_CAPTURE_MODE_THREAD_LOCAL), err);
}

int kg_cuda_capture_end(kg_cu_stream s, kg_cu_graph *out, kg_error *err) {
    kg_cu_graph g = NULL;
    int rc = KG_CU_CALL(cuStreamEndCapture, "", (s, &g), err);
    if (rc == KG_OK)
        *out = g;
    else
        kg_cuda_graph_destroy(g);
    return rc;
}

int kg_cuda_graph_instantiate(kg_cu_graph g, kg_cu_graph_exec *out, kg_error *err) {
    kg_cu_graph_exec exec = NULL;
    int rc = KG_CU_CALL(cuGraphInstantiateWithFlags, "", (&exec, g, 0), err);
    if (rc == KG_OK)
        *out = exec;
    return rc;
}

int kg_cuda_graph_launch(kg_cu_graph_exec g, kg_cu_stream s, kg_error *err) {
    return KG_CU_CALL(cuGraphLaunch, "", (g, s), err);
}

void kg_cuda_graph_exec_destroy(kg_cu_graph_exec g) {
    if (g != NULL)
        (void)kg_cu.cuGraphExecDestroy(g);
}

void kg_cuda_graph_destroy(kg_cu_graph g) {
    if (g != NULL)
        (void)kg_cu.cuGraphDestroy(g);
}
