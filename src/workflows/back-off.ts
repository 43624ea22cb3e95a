import type { Random } from '../lib/random.ts';

export interface BackOff {
  readonly first: number;
  readonly max: number;
}

/** Doubles with each failure up to the maximum; up to a quarter less, so that crowds disperse. */
export function backOffMs(failures: number, { first, max }: BackOff, random: Random): number {
  const whole = Math.min(max, first * 2 ** Math.min(Math.max(failures, 1) - 1, 30));
  const dice = (random.bytes(1)[0] ?? 0) / 256;
  return Math.round(whole * (1 - dice / 4));
}
