import { RouseError } from '../../errors.ts';
import type { Extent } from '../../lib/disk.ts';
import type { VimClient } from './client.ts';
import { isAway, isFault } from './faults.ts';
import { vsphereLimits } from './limits.ts';
import { all, at, leaf, numberAt, reference } from './vim-xml.ts';
import type { Ref } from './vim-xml.ts';

/** What is asked of change tracking: one disk, from a change id up to a snapshot. */
export interface ChangeQuestion {
  readonly machine: Ref;
  readonly snapshot: Ref;
  readonly key: number;
  /** For sentences. */
  readonly name: string;
  readonly sizeBytes: number;
  readonly changeId: string;
}

/** One answer of QueryChangedDiskAreas: what changed in [offset, end). */
export interface ChangePage {
  readonly offset: number;
  readonly end: number;
  readonly areas: readonly Extent[];
}

/**
 * An answer that cannot be true is an error (`corrupt-data`): what is missing in it would be missing
 * in the backup. So is a refusal, as nothing is known then.
 */
export async function changedPage(
  client: VimClient,
  question: ChangeQuestion,
  offset: number,
  signal?: AbortSignal,
): Promise<ChangePage> {
  const { machine, snapshot, key, changeId } = question;
  const args = [
    reference('snapshot', snapshot),
    leaf('deviceKey', key),
    leaf('startOffset', offset),
    leaf('changeId', changeId),
  ];
  try {
    const answer = await client.call('QueryChangedDiskAreas', machine, args, { signal });
    const page = at(answer, 'returnval');
    const areas = all(page, 'changedArea').map((area) => ({
      offset: numberAt(area, 'start') ?? Number.NaN,
      length: numberAt(area, 'length') ?? Number.NaN,
      zero: false,
    }));
    const start = numberAt(page, 'startOffset') ?? Number.NaN;
    const end = start + (numberAt(page, 'length') ?? Number.NaN);
    return checked({ offset, end, areas }, start, question);
  } catch (error) {
    if (!isFault(error) || isPassing(error)) throw error;
    throw doubt(question, error.message);
  }
}

/** What another try may mend says nothing about the changes. */
function isPassing(error: RouseError): boolean {
  return isAway(error) || ['unauthorised', 'busy', 'time-out'].includes(error.code);
}

function checked(page: ChangePage, start: number, question: ChangeQuestion): ChangePage {
  const { offset, end, areas } = page;
  const { sizeBytes } = question;
  if (start !== offset || !(end > offset)) {
    throw doubt(question, `asked from byte ${offset} on, it tells of ${start} to ${end}`);
  }
  let last = offset;
  for (const area of [...areas].sort((a, b) => a.offset - b.offset)) {
    const areaEnd = area.offset + area.length;
    if (!(area.offset >= last && area.length >= 0 && areaEnd <= end)) {
      throw doubt(question, `it names a range out of place: ${area.offset} to ${areaEnd}`);
    }
    if (areaEnd > sizeBytes) {
      throw doubt(question, `it names bytes up to ${areaEnd} of a disk of ${sizeBytes} bytes`);
    }
    last = areaEnd;
  }
  return { offset, end, areas: [...areas].sort((a, b) => a.offset - b.offset) };
}

function doubt({ name }: ChangeQuestion, why: string): RouseError {
  return new RouseError('corrupt-data', `what changed on disk ${name} cannot be told: ${why}`, {
    advice: 'It is read whole instead. To begin change tracking anew: switch it off and on again.',
  });
}

/** What changed in any range, asked for in order; holds one answer at a time. */
export class ChangedAreas {
  readonly #client: VimClient;
  readonly #question: ChangeQuestion;
  readonly #signal: AbortSignal;
  #page: ChangePage | undefined;
  #asked = 0;

  constructor(client: VimClient, question: ChangeQuestion, signal: AbortSignal) {
    this.#client = client;
    this.#question = question;
    this.#signal = signal;
  }

  /** Ranges in [offset, offset + length), ascending; what lies close together is one. */
  async within(offset: number, length: number): Promise<readonly Extent[]> {
    const end = Math.min(offset + length, this.#question.sizeBytes);
    const found: Extent[] = [];
    for (let at = offset; at < end;) {
      const page = await this.#covering(at);
      for (const area of page.areas) add(found, area, at, Math.min(end, page.end));
      at = page.end;
    }
    return found;
  }

  async #covering(offset: number): Promise<ChangePage> {
    const known = this.#page;
    if (known !== undefined && known.offset <= offset && offset < known.end) return known;
    this.#asked += 1;
    if (this.#asked > vsphereLimits.changePagesMax) {
      throw doubt(this.#question, `it took ${this.#asked} answers`);
    }
    this.#page = await changedPage(this.#client, this.#question, offset, this.#signal);
    return this.#page;
  }
}

/** The part of the area in [from, to), joined with the one before when the gap is small. */
function add(found: Extent[], area: Extent, from: number, to: number): void {
  const offset = Math.max(area.offset, from);
  const end = Math.min(area.offset + area.length, to);
  if (end <= offset) return;
  const last = found.at(-1);
  if (
    last !== undefined &&
    offset - (last.offset + last.length) <= vsphereLimits.rangeGapBytesMax
  ) {
    found[found.length - 1] = { ...last, length: end - last.offset };
  } else {
    found.push({ offset, length: end - offset, zero: false });
  }
}
