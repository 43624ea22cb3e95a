import type { Clock } from '../lib/clock.ts';
import type { Connection } from './connection.ts';
import type { DuplicateRequests } from './duplicates.ts';
import type { ExportTable } from './exports.ts';
import type { NextCall } from './next-call.ts';
import type { WriteGroup } from './nfs3/write.ts';
import type { RecentWrites } from './recent-writes.ts';
import type { SegmentPool } from './segments.ts';

/** What messages about clients and faults go to; pino's shape. */
export interface NfsLog {
  info(facts: object, message: string): void;
  warn(facts: object, message: string): void;
}

/** What all connections of one server share. */
export interface Shared {
  readonly clock: Clock;
  readonly log: NfsLog;
  readonly table: ExportTable;
  readonly pool: SegmentPool;
  readonly duplicates: DuplicateRequests;
  readonly writes: RecentWrites;
  readonly nextCall: NextCall;
  /** WRITEs that wait for what was written last. */
  lastWrites: WriteGroup | undefined;
  /** Of the connection that was opened last; they count from 1. */
  lastSerial: number;
  /** Bytes of calls in flight on all connections. */
  inFlightBytes: number;
  readonly inFlightBytesMax: number;
  /** Connections that wait for `inFlightBytes` to fall. */
  readonly stalled: Set<Connection>;
  /** Runs the program that a call is for; its reply may come later. */
  readonly dispatch: (connection: Connection) => void;
}
