// Channels-last: a thread stays at its columns and walks down the rows. Channels-first with small
// planes is served as well: its rows are samples, and neighbouring columns fold into a channel.
#include "entries.h"

PACK_ENTRIES(columns, Columns, f32, float, 4)
PACK_ENTRIES(columns, Columns, b16, b16_t, 8)
SINGLE_ENTRIES(columns, Columns, f32, float)
SINGLE_ENTRIES(columns, Columns, b16, b16_t)
ENTRY(statistics_columns_f32x1, statistics<float, 1, 8, Columns>)
ENTRY(statistics_columns_b16x1, statistics<b16_t, 1, 8, Columns>)
