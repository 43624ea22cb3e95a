import { pageBytes } from './layer-format.ts';
import type { DiskView, LayerReader } from './layer-reader.ts';

/**
 * Whole pages for a write that covers some only in part: the rest is what they hold now. Another
 * write to one of them may come while the disk is read; then it is read again, so no byte of it
 * is undone. `flush` appends what waits; `settled` says that nothing waits. `append` is called in the
 * turn in which the pages are known to be current, and answers the write.
 */
export async function mergeAndAppend<T>(
  view: DiskView,
  reader: LayerReader,
  offset: number,
  data: Buffer,
  flush: () => Promise<void>,
  settled: () => boolean,
  append: (firstPage: number, whole: Buffer) => Promise<T>,
): Promise<T> {
  const firstPage = Math.floor(offset / pageBytes);
  const pages = Math.ceil((offset + data.length) / pageBytes) - firstPage;
  const within = offset - firstPage * pageBytes;
  const whole = Buffer.alloc(pages * pageBytes);
  const edges = within === 0 ? [] : [0];
  const endsWithin = (within + data.length) % pageBytes !== 0;
  if (endsWithin && !edges.includes(pages - 1)) edges.push(pages - 1);
  for (;;) {
    await flush();
    const before = edges.map((edge) => entryOf(view, firstPage + edge));
    for (const edge of edges) {
      const start = (firstPage + edge) * pageBytes;
      const length = Math.min(pageBytes, view.sizeBytes - start);
      await reader.read(view, start, whole.subarray(edge * pageBytes, edge * pageBytes + length));
    }
    if (settled() && edges.every((edge, i) => entryOf(view, firstPage + edge) === before[i])) break;
  }
  data.copy(whole, within);
  return append(firstPage, whole);
}

function entryOf(view: DiskView, page: number): number {
  const index = view.map.find(page);
  return index < 0 ? 0 : view.map.positionAt(index);
}
