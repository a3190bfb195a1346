/* `birkhoff plan --schedule`: a pipeline schedule and how long its step takes (plan_schedule.c). No
 * model is needed. */
#ifndef BK_PLAN_SCHEDULE_H
#define BK_PLAN_SCHEDULE_H

#include "tools/cli.h"

bk_status cli_plan_schedule(cli_session *s);
/* BK_ERR_ARGUMENT where an option is given that has a meaning with --schedule alone. */
bk_status cli_plan_without_schedule(cli_session *s);

#endif
