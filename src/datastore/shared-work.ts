/**
 * Many callers, one run: whoever asks while a run is under way is served by the next one, which
 * they all share. A sync that began before a write says nothing about it, so nobody joins a run
 * that has begun.
 */
export class SharedWork {
  readonly #work: () => Promise<void>;
  #next: PromiseWithResolvers<void> | undefined;
  #running = false;

  constructor(work: () => Promise<void>) {
    this.#work = work;
  }

  get running(): boolean {
    return this.#running;
  }

  request(): Promise<void> {
    this.#next ??= Promise.withResolvers<void>();
    const { promise } = this.#next;
    if (!this.#running) void this.#run();
    return promise;
  }

  async #run(): Promise<void> {
    this.#running = true;
    while (this.#next !== undefined) {
      const current = this.#next;
      this.#next = undefined;
      try {
        await this.#work();
        current.resolve();
      } catch (error) {
        current.reject(error);
      }
    }
    this.#running = false;
  }
}
