// Which of two models is faster, from runs turn by turn: a ratio with its interval, or why there is none.

export const sorted = (values) => [...values].sort((a, b) => a - b);
export const median = (values) => sorted(values)[values.length >> 1];

/** Where the median of what these values are drawn from lies, in 95 of 100 cases: by order statistics, whatever they follow. */
export function interval(values) {
  const n = values.length, ordered = sorted(values);
  let below = 2 ** -n, term = below, k = 0; // below: the chance that at most k values lie under the median
  while (k + 1 < n - 1 - k && below + (term * (n - k)) / (k + 1) <= 0.025) {
    term *= (n - k) / (k + 1);
    below += term;
    k += 1;
  }
  return [ordered[k], ordered[n - 1 - k]];
}

const APART = 1.3; // how far the fastest runs may say something else before a machine is called busy

/**
 * How many times as fast the second is: times in ms of neighbouring runs, turn by turn.
 *
 * A browser knows no processor time. What stands in for it are the fastest runs of both, which another process has disturbed least:
 * where they say something else than the pairs, nothing is claimed.
 */
export function compare(before, after) {
  const ratios = before.map((ms, i) => ms / after[i]);
  const ratio = median(ratios), [low, high] = interval(ratios);
  const least = Math.min(...before) / Math.min(...after);
  const agree = ratio / least < APART && least / ratio < APART;
  const told = `${ratio.toFixed(2)}× [${low.toFixed(2)}, ${high.toFixed(2)}]`;
  if (!agree) return { ratio, low, high, least, clear: false, said: `no verdict on speed: the machine is busy (its fastest runs say ${least.toFixed(2)}×, all of them ${told}); run it again` };
  if (low > 1 && least > 1) return { ratio, low, high, least, clear: true, said: `${told} faster` };
  if (high < 1 && least < 1) return { ratio, low, high, least, clear: true, said: `slower: ${told} as fast` };
  return { ratio, low, high, least, clear: false, said: `no clear difference in speed (${told})` };
}
