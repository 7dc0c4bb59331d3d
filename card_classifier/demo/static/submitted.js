// For the form of a correction: tells Python which answer was wrong and which card is right.
element.addEventListener('submit', event => {
  event.preventDefault();
  const form = event.target;
  trigger('select', {reference: form.dataset.reference, right: form.elements.right.value});
});
