import { changesOf } from '../lib/changes.ts';
import { catalogLimits } from '../limits.ts';
import type { EventRow, Events } from './events.ts';
import type { EventFilter, EventService, EventView } from './schema.ts';

/** The log of events as people read it, page by page or as it grows. */
export class EventLog implements EventService {
  readonly #events: Events;

  constructor(events: Events) {
    this.#events = events;
  }

  async list(filter: EventFilter): Promise<readonly EventView[]> {
    const { limit, after } = filter;
    const rows = await this.#events.page(after === undefined ? { limit } : { limit, after });
    return rows.map(eventOf);
  }

  async *watch(after: number | undefined, signal: AbortSignal): AsyncIterable<EventView> {
    let seen = after ?? (await this.#events.page({ limit: 1 })).at(-1)?.seq ?? 0;
    const changes = changesOf(signal, (wake) => this.#events.onAppend(wake));
    for await (const _ of changes) {
      let rows: readonly EventRow[];
      do {
        rows = await this.#events.page({ limit: catalogLimits.eventsDefault, after: seen });
        for (const row of rows) {
          seen = row.seq;
          yield eventOf(row);
        }
      } while (rows.length === catalogLimits.eventsDefault && !signal.aborted);
    }
  }
}

function eventOf(row: EventRow): EventView {
  const { subjectKind: kind, subjectId: id, subjectName: name } = row;
  return {
    id: row.seq,
    atMs: row.timeMs,
    level: row.level,
    kind: row.kind,
    subject: kind === null || id === null ? null : { kind, id, name: name ?? id },
    message: row.message,
  };
}
