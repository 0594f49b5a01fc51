/* SPDX-License-Identifier: Apache-2.0 */
/* What is played: all commands that change a repository. */
#pragma once

#include "play.h"

static const struct step points_script[] = {
	{STEP_INIT, 0, 0},         {STEP_BACKUP, 0, 0},  {STEP_BACKUP, 1, 0},
	{STEP_PROTECT, 0, 0},      {STEP_BACKUP, 2, 0},  {STEP_REPAIR, 0, 0},
	{STEP_FORGET, 1U << 1, 0}, {STEP_ABANDON, 3, 0}, {STEP_PRUNE, 0, 0},
	{STEP_UNPROTECT, 0, 0},    {STEP_BACKUP, 3, 0},  {STEP_FORGET, 5, 0},
	{STEP_BACKUP, 4, 0},       {STEP_PRUNE, 0, 0},   {STEP_FORGET, 1U << 3, 0},
	{STEP_PRUNE, 0, 0},
};

static const struct step keys_script[] = {
	{STEP_INIT, 0, 0},       {STEP_BACKUP, 0, 0},     {STEP_KEY_ADD, 1, 0},
	{STEP_KEY_REMOVE, 1, 0}, {STEP_KEY_CHANGE, 2, 0}, {STEP_KEY_ROTATE, 2, 0},
	{STEP_BACKUP, 1, 0},     {STEP_KEY_ADD, 3, 0},    {STEP_KEY_REMOVE, 3, 0},
};
