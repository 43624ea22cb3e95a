/**
 * A disk that can be read at random: what formats, NBD, clones and savesets offer each other.
 * Offsets and lengths are bytes. Reads never cross `sizeBytes`.
 */
export interface ReadableDisk {
  readonly sizeBytes: number;
  /** Fills `target` completely from `offset`. Rejects with a RouseError when it cannot. */
  read(target: Uint8Array, offset: number): Promise<void>;
  /**
   * The extents that cover [offset, offset + length) in order, without gaps or overlap. Ranges
   * known to read as zeros are `zero: true` and need not be read.
   */
  extents(offset: number, length: number): Promise<readonly Extent[]>;
  close(): Promise<void>;
}

export interface Extent {
  readonly offset: number;
  readonly length: number;
  readonly zero: boolean;
}

/** A disk that can be written as well; `sync` makes all earlier writes durable. */
export interface WritableDisk extends ReadableDisk {
  write(source: Uint8Array, offset: number): Promise<void>;
  zero(offset: number, length: number): Promise<void>;
  sync(): Promise<void>;
}
