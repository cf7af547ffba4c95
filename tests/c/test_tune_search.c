/* The search against a made-up evaluator whose times are known, so that the winner is known too. */
#include "search_util.h"

TEST(search_finds_the_best_for_each_case) {
    fake f = {0};
    kg_search_result r;
    CHECK_INT(fake_run(&f, 60000, &r), KG_OK);
    fake_check_winners(&r);
    CHECK_INT(r.dropped, 4);    /* A = 7 */
    CHECK_INT(f.judged[0], 28); /* the rest, once */
    CHECK(f.judged[1] < 28 && f.judged[1] > 0);
    CHECK(f.judged[2] <= 4);
    CHECK_INT(r.verdicts[KG_VERDICT_WRONG_VALUES] >= 4, 1);
    int64_t a = 0;
    kg_json_int(kg_json_get(r.winners[1].record, "a"), "a", &a, NULL);
    CHECK_INT(a, 5);
    kg_search_result_free(&r);
}

TEST(search_over_several_devices_finds_the_same) {
    fake f = {.lanes = 3};
    kg_search_result r;
    CHECK_INT(fake_run(&f, 60000, &r), KG_OK);
    fake_check_winners(&r);
    CHECK_INT(f.judged[0], 28);
    CHECK_INT(r.dropped, 4);
    CHECK(f.most_at_once == 2 || f.most_at_once == 3);
    for (int i = 0; i < 3; i++)
        CHECK(f.by_lane[i] > 0);
    kg_search_result_free(&r);
    /* What the lanes learnt is in the journal, each once. */
    fake again = {.lanes = 2};
    CHECK_INT(fake_run(&again, 60000, &r), KG_OK);
    fake_check_winners(&r);
    CHECK_INT(again.judged[0] + again.judged[1] + again.judged[2], 0);
    kg_search_result_free(&r);
}

TEST(search_over_several_devices_stops_in_all_lanes) {
    fake killed = {.lanes = 3, .die_after = 20};
    kg_search_result r;
    CHECK_INT(fake_run(&killed, 60000, &r), KG_EINTR);
    kg_stop_set(false);
    CHECK(killed.judged[0] < 28);
    kg_search_result_free(&r);
}

TEST(search_resumes_without_asking_twice) {
    fake killed = {.die_after = 20}, again = {0}, third = {0};
    kg_search_result r;
    CHECK_INT(fake_run(&killed, 60000, &r), KG_EINTR);
    kg_stop_set(false);
    kg_search_result_free(&r);
    CHECK_INT(fake_run(&again, 60000, &r), KG_OK);
    fake_check_winners(&r);
    CHECK_INT(r.resumed, 20);
    CHECK_INT(again.judged[0], 8);
    kg_search_result_free(&r);
    CHECK_INT(fake_run(&third, 60000, &r), KG_OK);
    fake_check_winners(&r);
    CHECK_INT(third.judged[0] + third.judged[1] + third.judged[2], 0);
    kg_search_result_free(&r);
}

TEST(search_does_not_remember_what_a_stop_brought_about) {
    fake stopped = {.die_after = 20, .crash = true}, again = {0};
    kg_search_result r;
    CHECK_INT(fake_run(&stopped, 60000, &r), KG_EINTR);
    kg_stop_set(false);
    kg_search_result_free(&r);
    CHECK_INT(fake_run(&again, 60000, &r), KG_OK);
    fake_check_winners(&r);
    CHECK_INT(r.resumed, 20);
    CHECK_INT(r.verdicts[KG_VERDICT_CRASH], 0);
    kg_search_result_free(&r);
}

TEST(search_answers_within_no_budget) {
    fake f = {0};
    kg_search_result r;
    CHECK_INT(fake_run(&f, 0, &r), KG_OK);
    CHECK(r.out_of_time);
    CHECK_INT(f.judged[0], 5); /* those with A = 0 fail */
    CHECK_INT(f.judged[2], 1);
    CHECK(r.winners[0].source == 0);
    kg_search_result_free(&r);
}

/* The defaults, six more of A (its 7 does not compile) and three of B. */
TEST(search_tries_each_tunable_before_their_combinations) {
    fake f = {0};
    kg_search_result r;
    CHECK_INT(fake_run(&f, 60000, &r), KG_OK);
    CHECK_INT(f.apart, 10);
    kg_search_result_free(&r);
}

TEST(search_within_no_budget_meets_each_source) {
    fake f = {.two = true};
    kg_search_result r;
    CHECK_INT(fake_run(&f, 0, &r), KG_OK);
    CHECK(r.out_of_time && f.second >= 1 && f.judged[0] <= 10);
    kg_search_result_free(&r);
}

/* The best for each Case is judged fully, the next best is not when the time is up. */
TEST(search_ends_with_an_answer_when_its_budget_ends) {
    fake f = {.pause_ms = 1000, .pause_level = KG_LEVEL_FULL, .pause_nth = 1}, all = {0};
    kg_search_result r;
    CHECK_INT(fake_run(&f, 1000, &r), KG_OK);
    CHECK(r.out_of_time);
    CHECK_INT(f.judged[0], 28);
    CHECK_INT(f.judged[2], 2);
    fake_check_winners(&r);
    kg_search_result_free(&r);
    CHECK_INT(fake_run(&all, 60000, &r), KG_OK);
    CHECK_INT(all.judged[2], 2);
    fake_check_winners(&r);
    kg_search_result_free(&r);
}

/* The time is up with the first rung: the times it gave choose what is judged fully. */
TEST(search_ends_with_an_answer_when_its_second_rung_is_late) {
    fake f = {.pause_ms = 1000, .pause_level = KG_LEVEL_QUICK, .pause_nth = 28};
    kg_search_result r;
    CHECK_INT(fake_run(&f, 1000, &r), KG_OK);
    CHECK(r.out_of_time);
    CHECK_INT(f.judged[0], 28);
    CHECK_INT(f.judged[1], 0);
    CHECK_INT(f.judged[2], 2);
    fake_check_winners(&r);
    kg_search_result_free(&r);
}

/* Eight of 32 fit: all of them are tried, where thinning the whole grid to eight would meet two. */
TEST(search_thins_what_fits_and_not_what_does_not) {
    fake f = {.narrow = true, .most = 8};
    kg_search_result r;
    CHECK_INT(fake_run(&f, 60000, &r), KG_OK);
    CHECK_INT(f.judged[0], 8);
    CHECK_INT(r.dropped, 0);
    fake_check_winners(&r);
    kg_search_result_free(&r);
}

/* The budget is the Run's: a life that used it up leaves nothing for the next, unless more is
 * given. */
TEST(search_spends_its_budget_once) {
    fake first = {0}, same = {0}, more = {0};
    kg_search_result r;
    CHECK_INT(fake_run(&first, 0, &r), KG_OK);
    char winner[65];
    memcpy(winner, r.winners[0].id, sizeof winner);
    kg_search_result_free(&r);
    CHECK_INT(fake_run(&same, 0, &r), KG_OK);
    CHECK_INT(same.judged[0] + same.judged[1] + same.judged[2], 0);
    CHECK(r.out_of_time);
    CHECK_STR(r.winners[0].id, winner);
    kg_search_result_free(&r);
    CHECK_INT(fake_run(&more, 60000, &r), KG_OK);
    CHECK_INT(first.judged[0] + more.judged[0], 28);
    fake_check_winners(&r);
    CHECK(r.spent_s > 0 && r.spent_s < 60);
    kg_search_result_free(&r);
}

TEST(tunings_thin_evenly_and_begin_with_the_default) {
    kg_op *op = fake_read_op();
    kg_sources s = {0};
    kg_tuning *list = NULL;
    size_t n = 0;
    fake_read_sources(op, &s);
    CHECK_INT(kg_tunings(s.items[0].plan, 1000, &list, &n, NULL), KG_OK);
    CHECK_INT(n, 32);
    free(list);
    CHECK_INT(kg_tunings(s.items[0].plan, 5, &list, &n, NULL), KG_OK);
    CHECK_INT(n, 5);
    CHECK_INT(list[0].value[0], 0);
    CHECK_INT(list[0].value[1], 0);
    CHECK_INT(list[4].value[0], 6);
    free(list);
    kg_sources_free(&s);
    kg_op_free(op);
}
