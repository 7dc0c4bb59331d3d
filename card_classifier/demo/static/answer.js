// An answer that can be used: outlines to tap, crops, corrections, and a card that is missing.
(demo => {
  const cropWidth = 250; // Pixels, as the drawn card beside it
  const cropHeight = 350;

  // A card cut out of the photo and laid straight, by the three corners that make a parallelogram.
  const drawCrop = (canvas, image, corners) => {
    const [width, height] = [image.naturalWidth, image.naturalHeight];
    const [first, second, , last] = corners.map(([x, y]) => [x * width, y * height]);
    const across = [second[0] - first[0], second[1] - first[1]];
    const down = [last[0] - first[0], last[1] - first[1]];
    const area = across[0] * down[1] - across[1] * down[0];
    if (!area) return;
    canvas.width = cropWidth;
    canvas.height = cropHeight;
    const pen = canvas.getContext('2d');
    const [w, h] = [cropWidth / area, cropHeight / area];
    pen.setTransform(w * down[1], -h * across[1], -w * down[0], h * across[0],
      w * (down[0] * first[1] - down[1] * first[0]), h * (across[1] * first[0] - across[0] * first[1]));
    pen.drawImage(image, 0, 0);
    canvas.hidden = false;
  };

  // Shows which card is looked at, on the photo, in the list and beside it.
  const select = (view, number) => {
    const is = element => element.dataset.number === String(number);
    for (const part of view.parts('.tag, .chip')) part.setAttribute('aria-pressed', is(part));
    for (const part of view.parts('polygon')) part.classList.toggle('chosen', is(part));
    for (const part of view.parts('.card-panel')) part.hidden = !is(part);
    for (const part of view.parts('.tap')) part.hidden = number !== null;
  };

  const send = async (view, form, right, number, more = {}) => {
    const told = form.querySelector('.told');
    for (const button of form.querySelectorAll('button')) button.disabled = true;
    const {request_id, index} = view.answer;
    const said = await demo.correct({request_id, index, number, right, answered: form.dataset.answered || '', ...more});
    for (const button of form.querySelectorAll('button')) button.disabled = false;
    told.innerHTML = said.said;
    return said.is_kept;
  };

  // Taps and boxes on the photo while a missing card is shown.
  const marking = (view, form) => {
    const box = document.createElement('div');
    box.className = 'mark';
    box.hidden = true;
    view.picture.append(box);
    let start = null;
    const place = event => {
      const frame = view.picture.getBoundingClientRect();
      const within = (value, size) => Math.min(1, Math.max(0, value / size));
      return [within(event.clientX - frame.left, frame.width), within(event.clientY - frame.top, frame.height)];
    };
    const draw = ([x, y]) => {
      let [left, right] = [Math.min(start[0], x), Math.max(start[0], x)];
      let [top, bottom] = [Math.min(start[1], y), Math.max(start[1], y)];
      if (right - left < 0.02 && bottom - top < 0.02) { // A tap: as large as cards often are
        [left, right, top, bottom] = [left - 0.06, right + 0.06, top - 0.08, bottom + 0.08];
      }
      Object.assign(box.style, {left: `${100 * left}%`, top: `${100 * top}%`});
      Object.assign(box.style, {width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`});
      box.hidden = false;
      view.marked = [[left, top], [right, top], [right, bottom], [left, bottom]];
    };
    const down = event => {
      start = place(event);
      view.picture.setPointerCapture(event.pointerId);
      draw(start);
      event.preventDefault();
    };
    const move = event => start && draw(place(event));
    const up = () => {
      start = null;
    };
    const handlers = {pointerdown: down, pointermove: move, pointerup: up};
    for (const [name, handler] of Object.entries(handlers)) view.picture.addEventListener(name, handler);
    view.picture.classList.add('marking');
    view.stopMarking = () => {
      for (const [name, handler] of Object.entries(handlers)) view.picture.removeEventListener(name, handler);
      view.picture.classList.remove('marking');
      box.remove();
      view.marked = null;
      form.hidden = true;
      view.stopMarking = null;
    };
    form.hidden = false;
    form.querySelector('select').focus({preventScroll: true});
  };

  const toggleMarking = (view, button) => {
    if (view.stopMarking) view.stopMarking();
    else marking(view, button.parentElement.querySelector('form'));
    button.setAttribute('aria-expanded', Boolean(view.stopMarking));
  };

  const submit = async (view, form) => {
    const right = form.elements.right.value;
    if (!form.classList.contains('missing-form')) return send(view, form, right, Number(form.dataset.number));
    const more = view.marked ? {corners: view.marked} : {};
    if (await send(view, form, right, view.answer.cards.length + view.nMissing, more)) view.nMissing += 1;
    return null;
  };

  // The photo with its outlines, in an element that is emptied.
  demo.showPicture = (hero, photo, answer) => {
    const label = answer?.cards.length ? answer.summary || answer.title : demo.texts.photo.label;
    hero.innerHTML = '<div class="picture"><img alt=""></div>';
    const image = hero.querySelector('img');
    image.alt = label === demo.texts.photo.label ? label : `${demo.texts.photo.label}: ${label}`;
    image.onload = () => hero.firstChild?.style.setProperty('--ratio', image.naturalWidth / image.naturalHeight);
    if (photo.url) image.src = photo.url;
    hero.firstChild.insertAdjacentHTML('beforeend', answer?.overlay || '');
    hero.hidden = !photo.url;
  };

  // Shows an answer in two elements: the photo in `hero`, the words beside it.
  demo.showAnswer = async (hero, words, photo, answer) => {
    demo.showPicture(hero, photo, answer);
    words.innerHTML = answer.words;
    if (answer.status !== 200) return;
    const parts = [hero, words];
    const view = {answer, nMissing: 0, marked: null, stopMarking: null, picture: hero.querySelector('.picture')};
    view.parts = selector => parts.flatMap(part => [...part.querySelectorAll(selector)]);
    const choose = event => {
      const part = event.target.closest('.tag, .chip, polygon');
      if (!part || view.stopMarking) return;
      const isOpen = part.getAttribute('aria-pressed') === 'true';
      select(view, isOpen && answer.cards.length > 1 ? null : part.dataset.number);
      if (!isOpen) demo.reveal(words.querySelector(`.card-panel[data-number="${part.dataset.number}"]`));
    };
    view.picture.addEventListener('click', choose);
    words.firstElementChild.addEventListener('click', event => {
      choose(event);
      const quick = event.target.closest('[data-right]');
      const missing = event.target.closest('[data-do=missing]');
      if (quick) send(view, quick.closest('form'), quick.dataset.right, Number(quick.closest('form').dataset.number));
      if (missing) toggleMarking(view, missing);
    });
    words.firstElementChild.addEventListener('submit', event => {
      event.preventDefault();
      submit(view, event.target);
    });
    if (answer.cards.length === 1) select(view, answer.cards[0].number);
    const image = photo.url && await demo.pixels(photo.url).catch(() => null);
    if (!image) return;
    for (const card of answer.cards.filter(one => one.corners)) {
      const canvas = words.querySelector(`.card-panel[data-number="${card.number}"] .crop`);
      if (canvas) drawCrop(canvas, image, card.corners);
    }
  };

})(window.cardDemo);
