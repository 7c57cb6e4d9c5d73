// Moments: the mean and the spread of a set of values, taken batch by batch and merged.
#pragma once
#include "device.cuh"
#include "reduce.cuh"

// The rounded sum of a and b, and what rounding took off (Knuth).
__device__ inline float two_sum(float a, float b, float &rest) {
    const float sum = a + b;
    const float b_part = sum - a;
    rest = (a - (sum - b_part)) + (b - b_part);
    return sum;
}

// A pairwise sum: independent additions, and errors that grow with log2(N).
template <int N>
__device__ inline float sum_of(const float *values) {
    if constexpr (N == 1) {
        return values[0];
    } else {
        return sum_of<N / 2>(values) + sum_of<N - N / 2>(values + N / 2);
    }
}

// The same with what rounding took off: about twice the digits of fp32.
template <int N>
__device__ inline float sum_of(const float *values, float &rest) {
    if constexpr (N == 1) {
        rest = 0.0f;
        return values[0];
    } else {
        float of_pair, of_first, of_second;
        const float first = sum_of<N / 2>(values, of_first);
        const float second = sum_of<N - N / 2>(values + N / 2, of_second);
        const float sum = two_sum(first, second, of_pair);
        rest = of_pair + (of_first + of_second);
        return sum;
    }
}

// The sum of their squares, likewise.
template <int N>
__device__ inline float sum_of_squares(const float *values) {
    if constexpr (N == 1) {
        return values[0] * values[0];
    } else if constexpr (N == 2) {
        return fmaf(values[1], values[1], values[0] * values[0]);
    } else {
        return sum_of_squares<N / 2>(values) + sum_of_squares<N - N / 2>(values + N / 2);
    }
}

// A sum with what rounding took off it.
struct CompensatedSum {
    float hi, lo;

    __device__ void add(float value) {
        float rest;
        hi = two_sum(hi, value, rest);
        lo += rest;
    }
};

// Adds a few elements. The sum of a few of 16 bits is exact in fp32 but where they are more than a
// thousand times apart, and then right to fp32's last digit.
template <class T, int N>
__device__ inline void add_elements(const float (&values)[N], CompensatedSum &sum) {
    float rest = 0.0f;
    sum.add(sizeof(T) == 2 ? sum_of<N>(values) : sum_of<N>(values, rest));
    sum.lo += rest;
}

// Squares of fp32 leave its range where values do not: deviations are squared in units of 2^60,
// 1 or 2^-60. The larger unit wins where two meet: what it loses, it does not miss.
enum Gear { GEAR_LOW = -1, GEAR_MIDDLE = 0, GEAR_HIGH = 1 };

__device__ inline int gear_of(float magnitude) {
    if (magnitude > 0x1p40f) return GEAR_HIGH;
    return magnitude < 0x1p-40f ? GEAR_LOW : GEAR_MIDDLE;
}

// The gear for deviations of values of this magnitude: they may be smaller by fp32's precision.
__device__ inline int gear_of_values(float magnitude) {
    if (magnitude > 0x1p40f) return GEAR_HIGH;
    return magnitude < 0x1p-20f ? GEAR_LOW : GEAR_MIDDLE;
}

// Whether elements reach the magnitudes at which it takes one.
template <class T>
constexpr bool HAS_GEARS = true;
template <>
constexpr bool HAS_GEARS<half_t> = false;

// What a deviation is multiplied by.
__device__ inline float unit_of(int gear) {
    const float unit = gear == GEAR_HIGH ? 0x1p-60f : 0x1p60f;
    return gear == GEAR_MIDDLE ? 1.0f : unit;
}

// Brings a deviation into the gear's unit.
__device__ inline float in_gear(float deviation, int gear) { return deviation * unit_of(gear); }

// And back, which is exact.
__device__ inline float out_of_gear(float deviation, int gear) {
    const float unit = gear == GEAR_HIGH ? 0x1p60f : 0x1p-60f;
    return gear == GEAR_MIDDLE ? deviation : deviation * unit;
}

// Brings an M2 from a gear into one that is not lower.
__device__ inline float shift_gear(float m2, int from, int to) {
    if (from == to) return m2;
    return to - from == 1 ? m2 * 0x1p-120f : 0.0f;
}

// What a set of values has in common; their count is kept beside it, since lanes share one.
struct Moments {
    float mean_hi, mean_lo;  // the mean is their sum: fp32 alone would lose |mean| / std digits
    float m2;                // the sum of squared deviations, in the gear's unit squared
    int gear;
};

__device__ inline Moments no_moments() { return {0.0f, 0.0f, 0.0f, GEAR_LOW}; }

// value / count as it is rounded, by way of the inverse of the count, which many values share.
__device__ inline float divide_by(float count, float inverse, float value) {
    const float quotient = value * inverse;
    return fmaf(fmaf(-quotient, count, value), inverse, quotient);
}

// From M2 about `pivot`, the rounded mean, and the sum of the deviations from it, which is what the
// pivot's rounding has left; `inverse` is that of their count.
__device__ inline Moments moments_about(float pivot, float m2, int gear, float sum, float inverse) {
    const float correction = sum * inverse;
    m2 -= in_gear(sum, gear) * in_gear(correction, gear);
    Moments result = {0.0f, 0.0f, m2 < 0.0f ? 0.0f : m2, gear};
    result.mean_hi = two_sum(pivot, correction, result.mean_lo);
    return result;
}

// The same about a pivot that may be anywhere, from the sum of the values.
__device__ inline Moments moments_from_sums(float pivot, float m2, const CompensatedSum &sum, float count) {
    // What the values differ from the pivot by in all, to twice the digits of fp32.
    const float of_pivot = pivot * count, of_pivot_rest = fmaf(pivot, count, -of_pivot);
    float lost, rest_of_deviations;
    const float difference = two_sum(sum.hi, -of_pivot, lost);
    const float deviations = two_sum(difference, lost + (sum.lo - of_pivot_rest), rest_of_deviations);
    const float correction = deviations / count;
    const float correction_rest =
        (fmaf(-correction, count, deviations) + rest_of_deviations) / count;
    Moments result = {0.0f, 0.0f, fmaxf(fmaf(-deviations, correction, m2), 0.0f),
                      m2 == 0.0f ? GEAR_LOW : GEAR_MIDDLE};
    result.mean_hi = two_sum(pivot, correction, result.mean_lo);
    result.mean_lo += correction_rest;
    return result;
}

// The same of those of N values in registers whose bit is set in `valid`.
template <int N>
__device__ inline Moments moments_around(const float (&values)[N], unsigned valid, float count,
                                         float pivot, float sum) {
    float deviations[N], squares[N];
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        deviations[i] = valid >> i & 1u ? values[i] - pivot : 0.0f;
        largest = fmaxf(largest, fabsf(deviations[i]));
    }
    const int gear = gear_of(largest);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const float deviation = in_gear(deviations[i], gear);
        squares[i] = deviation * deviation;
    }
    return moments_about(pivot, sum_of<N>(squares), gear, sum, 1.0f / count);
}

// Moments of those of N values in registers whose bit is set in `valid`, `count` of them, at
// least one: two passes, the first for the mean.
template <int N>
__device__ inline Moments moments_of(const float (&values)[N], unsigned valid, float count) {
    float present[N];
#pragma unroll
    for (int i = 0; i < N; ++i) present[i] = valid >> i & 1u ? values[i] : 0.0f;
    // A mean may be thousands of times smaller than the values, and is saved to fp32's last digit.
    float rest;
    const float sum = sum_of<N>(present, rest), pivot = sum / count;
    return moments_around<N>(values, valid, count, pivot, fmaf(-pivot, count, sum) + rest);
}

// Which part of all values a set is, to twice the digits of fp32.
struct Share {
    float hi, lo;
};

__device__ inline Share share_of(float part, float whole) {
    const float hi = part / whole;
    return {hi, fmaf(-hi, whole, part) / whole};
}

// Takes `other`, moments of a share of all values of both (Chan, Golub & LeVeque 1979), in.
// `weight` is count * share: what delta^2 counts for.
__device__ inline void merge_share(Moments &into, const Moments &other, const Share &share,
                                   float weight) {
    float rest, delta_lo;
    const float difference = two_sum(other.mean_hi, -into.mean_hi, rest);
    const float delta = two_sum(difference, rest + (other.mean_lo - into.mean_lo), delta_lo);
    const int gear = max(max(into.gear, other.gear), gear_of(fabsf(delta)));
    const float scaled = in_gear(delta, gear), twice_lo = 2.0f * in_gear(delta_lo, gear);
    into.m2 = shift_gear(into.m2, into.gear, gear) + shift_gear(other.m2, other.gear, gear) +
              fmaf(scaled, scaled, scaled * twice_lo) * weight;
    into.gear = gear;
    const float moved = delta * share.hi;
    const float moved_lo = fmaf(delta, share.hi, -moved) + (delta * share.lo + delta_lo * share.hi);
    const float mean = two_sum(into.mean_hi, moved, rest);
    into.mean_hi = two_sum(mean, into.mean_lo + (rest + moved_lo), into.mean_lo);
}

// Moments with their count, as reductions take them.
struct CountedMoments {
    Moments moments;
    float count;

    __device__ static CountedMoments empty() { return {no_moments(), 0.0f}; }

    // Takes moments of `added` values in, a share of all that it counts then.
    __device__ void take(const Moments &other, float added, const Share &share) {
        if (count == 0.0f) {
            moments = other;
        } else {
            merge_share(moments, other, share, count * share.hi);
        }
        count += added;
    }
};

// Moments in f64, where no gear is needed: what blocks leave for each other, and what a channel
// is finished from.
struct WideMoments {
    double count, mean, m2;

    __device__ static WideMoments empty() { return {0.0, 0.0, 0.0}; }
    __device__ bool is_empty() const { return count == 0.0; }

    __device__ static WideMoments from(const CountedMoments &narrow) {
        const Moments &moments = narrow.moments;
        const double unit = moments.gear == GEAR_MIDDLE ? 1.0
                            : moments.gear == GEAR_HIGH ? 0x1p60
                                                        : 0x1p-60;
        return {narrow.count, (double)moments.mean_hi + moments.mean_lo, moments.m2 * unit * unit};
    }

    // The same as sums about a pivot that is shared, the count aside, and back.
    static constexpr bool HAS_PIVOT = true;
    __device__ static float pivot_of(const CountedMoments &narrow) { return narrow.moments.mean_hi; }
    __device__ static Sums sums_of(const CountedMoments &narrow, float pivot) {
        Total total = {};
        total.add(from(narrow), pivot);
        return {total.sum, total.squares};
    }
    __device__ static WideMoments from(const Sums &sums, double count, double inverse, float pivot) {
        return Total{count, sums.first, sums.second}.result(pivot, inverse);
    }

    // Around which the moments of several sets are added up, without a division for each: the mean of
    // one of them, from which that of all is not far in units of their spread.
    __device__ double pivot() const { return mean; }

    struct Total {
        double count, sum, squares;

        __device__ void add(const WideMoments &set, double pivot) {
            const double delta = set.mean - pivot, weighted = set.count * delta;
            count += set.count;
            sum += weighted;
            squares += set.m2 + weighted * delta;
        }

        __device__ void add(const Total &other) {
            count += other.count;
            sum += other.sum;
            squares += other.squares;
        }

        __device__ WideMoments result(double pivot) const { return result(pivot, 1.0 / count); }

        __device__ WideMoments result(double pivot, double inverse) const {
            if (count == 0.0) return empty();
            const double shift = sum * inverse, m2 = squares - sum * shift;
            return {count, pivot + shift, m2 < 0.0 ? 0.0 : m2};
        }
    };
};
