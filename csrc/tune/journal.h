/* The journal of a Run: append-only, one JSON object a line, synced a line (docs/formats.md).
 *
 * Opening takes the Run's lock for the life of the journal, so that two tuners never share a Run,
 * cuts off a last line that a crash tore, and refuses any other bad line by its number. An entry
 * that was added is on disk when the call returns (one that only repeats what others say: with the
 * next one); when it fails, the file is as before. Several
 * threads may add and read; what was read stays as it is until the journal is closed. */
#ifndef KG_TUNE_JOURNAL_H
#define KG_TUNE_JOURNAL_H

#include "base/json.h"

typedef struct kg_journal kg_journal;

/* Creates <run_dir> and its journal.jsonl when absent. KG_EBUSY names the process that has the Run.
 */
int kg_journal_open(const char *run_dir, kg_journal **out, kg_error *err);
/* What is there, for who only reads, also of a Run that another process has: nothing is locked,
 * made or cut off, a torn last line is passed over, and nothing can be added. */
int kg_journal_peek(const char *run_dir, kg_journal **out, kg_error *err);
void kg_journal_close(kg_journal *j);

size_t kg_journal_size(const kg_journal *j);
const kg_json *kg_journal_at(const kg_journal *j, size_t i); /* borrowed */

/* Takes fields (an object, also when the call fails) and adds "format", "n", "kind", "t"
 * (seconds since the epoch) and "sum". */
int kg_journal_add(kg_journal *j, const char *kind, kg_json *fields, kg_error *err);

/* An entry's "sum": XXH3-64 of the canonical text with an empty one, which is set. For whoever
 * reads a journal without opening it. */
int kg_journal_sum(kg_json *entry, char sum[17], kg_error *err);

#endif
