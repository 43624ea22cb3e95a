import type { ImageFile } from './image-file.ts';
import { MappedDisk, wholeSectors } from './mapped-disk.ts';
import type { DiskMap, Segment } from './mapped-disk.ts';
import type { TableCache } from './table-cache.ts';

/**
 * A file or block device that is the disk itself. Holes are the file system's. A size that is no
 * multiple of 512 is rounded up; the missing bytes are zeros.
 */
export function openRaw(file: ImageFile, tables: TableCache): MappedDisk {
  return new MappedDisk({
    name: file.path,
    sizeBytes: wholeSectors(file.sizeBytes),
    map: rawMap(file),
    tables,
    close: () => file.close(),
  });
}

function rawMap(file: ImageFile): DiskMap {
  return {
    lookup(offset: number, lengthMax: number): Segment {
      if (offset >= file.sizeBytes) return { kind: 'zero', length: lengthMax };
      const length = Math.min(lengthMax, file.sizeBytes - offset);
      return { kind: 'file', length, file, position: offset };
    },
  };
}
